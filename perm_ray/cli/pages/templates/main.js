// Unpacks the rollouts, and minds the keys that work everywhere.

let browser = null;
let heldout = null;

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof Element && event.target.matches("input, select, textarea");
  const search = document.getElementById("search");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && browser) {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === "Escape") {
    const part = [heldout, browser].find((each) => each?.detail.contains(event.target)) ?? (document.getElementById("filters").contains(event.target) ? browser : null);
    if (!part) return;
    event.preventDefault();
    if (event.target === search && search.value) {
      search.value = "";
      search.dispatchEvent(new Event("input", { bubbles: true }));
    } else part.list.box.focus();
  }
});

async function start() {
  const status = document.getElementById("unpacking");
  if (typeof DecompressionStream === "undefined") {
    status.textContent = "The rollouts cannot be unpacked: use a browser of 2023 or later.";
    return;
  }
  const data = await unpacked(document.getElementById("rollout-data").textContent);
  heldout = startHeldout(data);
  if (data.rollouts.length) {
    document.getElementById("browser").hidden = false;
    browser = startBrowser(data);
    status.hidden = true;
    browser.showLinked(location.hash);
    addEventListener("hashchange", () => browser.showLinked(location.hash));
  } else status.textContent = "The run has no rollouts of training steps yet.";
  setTimeout(() => data.rollouts.forEach(searchable), 100); // so that the first search need not
}

start()
  .catch((error) => {
    document.getElementById("unpacking").textContent = `The rollouts cannot be shown (${error.message}): make the page again.`;
    throw error;
  })
  .finally(() => requestAnimationFrame(() => setTimeout(() => {
    document.documentElement.dataset.ready = "yes";
    performance.mark("report-ready");
  })));
