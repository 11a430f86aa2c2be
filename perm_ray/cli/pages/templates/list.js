// A list of many rows, a page at a time: `rollouts.js` and `heldout.js` put their rows into it.

const PAGE = 40;

// `row(item)` makes an option's children, `choose(item)` is told what is chosen. The root gets the focus.
function pagedList(root, label, row, choose, leave) {
  const id = root.id;
  const box = element("div", { class: "options", role: "listbox", tabindex: 0, "aria-label": label, id: `${id}-box` });
  const before = element("button", { type: "button", "aria-label": "page before" }, "←");
  const after = element("button", { type: "button", "aria-label": "next page" }, "→");
  const where = element("span", { role: "status" });
  const pager = element("div", { class: "pager" }, before, where, after);
  root.append(box, pager);
  let items = [];
  let at = -1;
  let page = -1;

  function go(to, scroll = true) {
    at = items.length ? Math.min(items.length - 1, Math.max(0, to)) : -1;
    const wanted = Math.max(0, Math.floor(at / PAGE));
    if (wanted !== page) fill(wanted);
    for (const option of box.querySelectorAll("[aria-selected=true]")) option.setAttribute("aria-selected", "false");
    const option = at >= 0 ? box.children[at % PAGE] : null;
    if (option) {
      option.setAttribute("aria-selected", "true");
      box.setAttribute("aria-activedescendant", option.id);
      if (scroll) keepInView(box, option);
    } else box.removeAttribute("aria-activedescendant");
    choose(at >= 0 ? items[at] : null);
  }

  function fill(wanted) {
    page = wanted;
    const start = page * PAGE;
    box.replaceChildren(...items.slice(start, start + PAGE).map((item, i) =>
      element("div", { role: "option", id: `${id}-${i}`, class: "option", "aria-selected": "false", "aria-posinset": start + i + 1, "aria-setsize": items.length }, row(item))));
    const pages = Math.max(1, Math.ceil(items.length / PAGE));
    where.textContent = items.length ? `page ${page + 1} of ${pages}` : "nothing found";
    before.disabled = page === 0;
    after.disabled = page >= pages - 1;
    pager.hidden = pages === 1 && items.length > 0;
    box.scrollTop = 0;
  }

  box.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) go(page * PAGE + [...box.children].indexOf(option), false);
  });
  box.addEventListener("keydown", (event) => {
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + PAGE, PageUp: at - PAGE, Home: 0, End: items.length - 1 };
    if (event.key in moves) go(moves[event.key]);
    else if (event.key === "Enter") leave();
    else return;
    event.preventDefault();
  });
  before.addEventListener("click", () => go((page - 1) * PAGE));
  after.addEventListener("click", () => go((page + 1) * PAGE));

  return {
    box,
    show(found, chosen = null) {
      items = found;
      page = -1;
      go(chosen === null ? 0 : Math.max(0, items.indexOf(chosen)));
    },
    choose: (item) => go(items.indexOf(item)),
    has: (item) => items.includes(item),
  };
}

// Not scrollIntoView: the page itself must stay where it is.
function keepInView(box, option) {
  const above = option.offsetTop - box.offsetTop;
  if (above < box.scrollTop) box.scrollTop = above;
  else if (above + option.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = above + option.offsetHeight - box.clientHeight;
}
