// Asks, shows the answers as they are written, and keeps which one a person prefers.

const form = document.getElementById("form");
const status_ = document.getElementById("status");
const hiddenBox = document.getElementById("hidden");
const sides = [...document.querySelectorAll("article")];
let setup = { scenarios: [], perspectives: [] };
let asked = null; // the pair that is shown: its id, names, what is complete, and the controller of its request

function say(text) {
  status_.textContent = text;
}

function field(name) {
  return form.elements.namedItem(name);
}

function choose() {
  const scenario = setup.scenarios[document.getElementById("choice").value];
  for (const name of ["persona", "scenario", "query"]) field(name).value = scenario ? scenario[name] : "";
}

// The texts; with the language and culture of the chosen scenario, as long as nobody wrote over what is said.
function written() {
  const texts = Object.fromEntries(["persona", "scenario", "query"].map((name) => [name, field(name).value.trim()]));
  const chosen = setup.scenarios[document.getElementById("choice").value];
  const { language = null, culture = null } = chosen?.query === texts.query ? chosen : {};
  return { ...texts, language, culture, hidden: Boolean(hiddenBox?.checked) };
}

async function post(path, value, signal) {
  const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value), signal });
  if (response.ok) return response;
  const text = await response.text();
  let reason = text;
  try { reason = JSON.parse(text).error ?? text; } catch { /* it is plain text */ }
  throw new Error(reason);
}

async function ask(event) {
  event.preventDefault();
  if (asked) asked.controller.abort();
  const pair = { id: null, names: null, hidden: Boolean(hiddenBox?.checked), complete: 0, judged: 0, failed: 0, preferred: null, controller: new AbortController() };
  asked = pair;
  for (const side of sides) {
    side.classList.remove("preferred");
    side.querySelector(".name").textContent = "";
    side.querySelector(".written").replaceChildren(prose("p", ""));
    side.querySelector(".scores").replaceChildren();
  }
  working(true);
  say("Writing ...");
  try {
    const response = await post("ask", written(), pair.controller.signal);
    for await (const each of lines(response.body)) {
      if (asked !== pair) return;
      show(pair, each);
    }
    if (asked === pair && pair.failed === 0 && pair.complete < sides.length) say("The server ended before the answers were complete: start it again.");
  } catch (error) {
    if (asked === pair) say(error.name === "AbortError" ? "Stopped." : `No answer: ${error.message}`);
  } finally {
    if (asked === pair) working(false);
  }
}

function working(on) {
  document.getElementById("stop").disabled = !on;
  ready();
}

// A choice is possible once both answers stand there, and once.
function ready() {
  const possible = asked !== null && asked.complete === 2 && asked.preferred === null;
  for (const side of sides) {
    const button = side.querySelector(".prefer");
    if (button) button.disabled = !possible;
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part) yield JSON.parse(part);
  }
}

function show(pair, { event, ...data }) {
  const side = sides[data.side];
  if (event === "pair") {
    pair.id = data.pair;
    if (data.names) showNames(data.names);
  } else if (event === "text") side.querySelector(".written .prose").append(data.text);
  else if (event === "answer") {
    side.querySelector(".written").replaceChildren(...answerParts(data));
    pair.complete += 1;
    if (pair.complete === sides.length) say(setup.perspectives.length ? "The answers are complete; the judges are reading." : "The answers are complete.");
    ready();
  } else if (event === "judgments") {
    side.querySelector(".scores").replaceChildren(...scoreParts(data));
    side.querySelector(".scores").hidden = pair.hidden && pair.preferred === null;
    pair.judged += 1;
    if (pair.judged === sides.length && pair.preferred === null) say("The answers are complete and judged.");
  } else if (event === "failed") {
    pair.failed += 1;
    side.querySelector(".written").append(element("p", { class: "missing" }, `It broke off: ${data.reason}`));
    say("An answer broke off.");
  }
}

function showNames(names) {
  sides.forEach((side, k) => { side.querySelector(".name").textContent = names[k]; });
}

function answerParts({ text, analysis, response }) {
  if (response === null) return [element("p", { class: "missing" }, "Without the two headings, analysis and response:"), prose("p", text)];
  return [
    element("div", { class: "card" }, prose("p", response)),
    analysis === null ? null : element("details", {}, element("summary", {}, "The analysis, which the person does not see"), prose("p", analysis)),
  ].filter(Boolean);
}

function scoreParts({ judgments, reward, masked_because: why }) {
  const value = reward === null ? ["no reward: ", why] : ["reward ", element("strong", {}, signed(reward))];
  return [element("p", { class: "reward" }, value), ...setup.perspectives.map((view, p) => judgmentCard(view, p, judgments[view.name]))];
}

async function prefer(side) {
  const pair = asked;
  if (!pair || pair.complete !== 2 || pair.preferred !== null) return;
  pair.preferred = side;
  ready();
  try {
    const { names } = await (await post("keep", { pair: pair.id, side })).json();
    if (asked !== pair) return;
    showNames(names);
    sides[side].classList.add("preferred");
    for (const each of sides) each.querySelector(".scores").hidden = false;
    say(`Kept: you would rather receive answer ${side + 1}, of ${names[side]}.`);
  } catch (error) {
    pair.preferred = null;
    ready();
    say(`Not kept: ${error.message}`);
  }
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit();
  }
  const typing = event.target instanceof Element && event.target.matches("input, select, textarea");
  if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && ["1", "2"].includes(event.key)) prefer(Number(event.key) - 1);
});

async function start() {
  setup = await (await fetch("setup")).json();
  const choice = document.getElementById("choice");
  setup.scenarios.forEach((scenario, k) => choice.append(element("option", { value: k }, `${scenario.id}: ${scenario.query.slice(0, 80)}`)));
  if (setup.scenarios.length) choice.value = "0";
  choice.addEventListener("change", choose);
  choose();
  form.addEventListener("submit", ask);
  document.getElementById("stop").addEventListener("click", () => asked?.controller.abort());
  sides.forEach((side, k) => side.querySelector(".prefer")?.addEventListener("click", () => prefer(k)));
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => say(`The page could not start: ${error.message}`));
