// The rollout browser: filters and an order over the rows, a list, and the chosen rollout in full.

function startBrowser(data) {
  const form = document.getElementById("filters");
  const detail = document.getElementById("rollout-detail");
  const count = document.getElementById("count");
  const rows = data.rollouts;
  const groups = groupsOf(rows);
  let chosen = null;

  const show = (row) => {
    chosen = row;
    detail.replaceChildren(...(row ? rolloutDetail(data, row, groups.get(groupName(row)), pick) : [element("p", { class: "soft" }, "No rollout fits these filters.")]));
    detail.scrollTop = 0;
    markFound(detail, wantedText(form));
  };
  const list = pagedList(document.getElementById("rollout-list"), "Rollouts", (row) => optionOf(data, row), show, () => detail.focus());
  const pick = (row) => (list.has(row) ? list.choose(row) : show(row));

  addOptions(form.elements.perspective, data.perspectives.map((view) => view.name));
  for (const tag of ["language", "culture"]) addOptions(form.elements[tag], [...new Set(rows.map((row) => row[tag]).filter(Boolean))].sort());

  function apply() {
    const found = sorted(data, rows.filter(filterOf(form)), form.elements.sort.value);
    count.textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rollouts`;
    list.show(found, found.includes(chosen) ? chosen : null);
  }
  const applyFromTop = () => {
    chosen = null;
    apply();
  };
  const clear = (name = "all") => {
    form.reset();
    preset(form, name);
    applyFromTop();
  };
  // A filter leaves the chosen rollout chosen if it can; another order begins at its top.
  form.addEventListener("input", (event) => (event.target.name === "sort" ? applyFromTop() : apply()));
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("clear").addEventListener("click", () => clear());
  for (const button of document.querySelectorAll("[data-preset]")) button.addEventListener("click", () => clear(button.dataset.preset));
  apply();
  return {
    list,
    detail,
    showLinked(hash) {
      const row = rows.find((each) => linkOf(each) === hash);
      if (!row) return;
      clear();
      list.choose(row);
      detail.scrollIntoView();
    },
  };
}

function addOptions(select, values) {
  select.append(...values.map((value) => element("option", { value }, value)));
}

function preset(form, name) {
  const { sort, ambiguous, status } = form.elements;
  const orders = { worst: "reward_up", best: "reward_down", disagree: "disagreement" };
  if (name in orders) sort.value = orders[name];
  else if (name === "ambiguous") ambiguous.checked = true;
  else if (name === "masked") status.value = "masked";
}

function groupName(row) {
  return `${row.step} ${row.scenario_id}`;
}

function groupsOf(rows) {
  const groups = new Map();
  for (const row of rows) {
    if (!groups.has(groupName(row))) groups.set(groupName(row), []);
    groups.get(groupName(row)).push(row);
  }
  return groups;
}

// ---- filters and orders -----------------------------------------------------------------------

// The form as one test of a row. What is not filled in is not tested.
function filterOf(form) {
  const value = (name) => form.elements[name].value;
  const within = (field) => {
    const [low, high] = [value(`${field}_low`), value(`${field}_high`)];
    if (low === "" && high === "") return null;
    const [least, most] = [low === "" ? -Infinity : Number(low), high === "" ? Infinity : Number(high)];
    return (number) => number !== null && number >= least && number <= most;
  };
  const perspective = value("perspective");
  const judgments = (row) => (perspective ? [row.judgments[perspective] ?? []].flat() : Object.values(row.judgments));
  const tests = [];
  const [step, reward, score, status, text] = [within("step"), within("reward"), within("score"), value("status"), wantedText(form)];
  if (step) tests.push((row) => step(row.step));
  if (reward) tests.push((row) => row.reward !== null && reward(row.reward.value));
  if (score) tests.push((row) => judgments(row).some((judgment) => score(judgment.score)));
  for (const tag of ["language", "culture"]) {
    const wanted = value(tag);
    if (wanted) tests.push((row) => row[tag] === wanted);
  }
  if (form.elements.ambiguous.checked) tests.push((row) => row.ambiguous.length > 0);
  if (status === "rewarded") tests.push((row) => row.reward !== null);
  else if (status === "masked") tests.push((row) => row.reward === null);
  else if (status === "truncated") tests.push((row) => row.finish_reason === "length");
  else if (status) tests.push((row) => judgments(row).some((judgment) => judgment.status === status));
  if (text) tests.push((row) => searchable(row).includes(text));
  return (row) => tests.every((test) => test(row));
}

function wantedText(form) {
  return form.elements.text.value.trim().toLowerCase();
}

// Everything of a row that is searched, in small letters; made once.
function searchable(row) {
  row.searchable ??= [
    row.scenario_id,
    ...(row.query ? [row.persona, row.scenario, row.query] : row.prompt.map(({ content }) => content)),
    row.completion,
    row.masked_because,
    ...Object.values(row.judgments).map((judgment) => judgment.reason),
  ].join("\n").toLowerCase();
  return row.searchable;
}

function sorted(data, rows, order) {
  const keys = {
    reward_up: (row) => row.reward?.value ?? Infinity,
    reward_down: (row) => -(row.reward?.value ?? -Infinity),
    disagreement: (row) => -disagreement(data, row),
    long: (row) => -row.tokens,
    short: (row) => row.tokens,
  };
  if (!keys[order]) return rows; // the order of the files
  const key = new Map(rows.map((row) => [row, keys[order](row)]));
  return rows.sort((a, b) => key.get(a) - key.get(b) || 0); // Infinity - Infinity is no number
}

// How far the empathy perspectives are apart, as a share of their scales; -1 where fewer than two scored.
function disagreement(data, row) {
  const shares = data.perspectives
    .filter((view) => view.kind === "empathy" && (row.judgments[view.name]?.score ?? null) !== null)
    .map((view) => (row.judgments[view.name].score - view.low) / (view.high - view.low));
  return shares.length > 1 ? Math.max(...shares) - Math.min(...shares) : -1;
}

// ---- what is shown ----------------------------------------------------------------------------

function optionOf(data, row) {
  const scores = data.perspectives.map((view, p) =>
    element("span", { class: "mini", title: view.name }, element("span", { class: `swatch c${p}` }), element("span", { class: "soft" }, view.name.slice(0, 3)), " ", figure(row.judgments[view.name]?.score, view.high > 20 ? 0 : 1)));
  const reward = row.reward === null ? element("span", { class: "badge bad" }, "masked") : element("strong", {}, signed(row.reward.value, 2));
  const snippet = row.response ?? row.analysis ?? row.completion;
  return [
    element("div", { class: "line" }, element("span", {}, `step ${row.step} · ${row.scenario_id} #${row.index}`), element("span", {}, row.ambiguous.length ? [element("span", { class: "badge" }, "ambiguous"), " "] : null, reward)),
    element("div", { class: "minis" }, scores),
    element("div", { class: "snippet", dir: "auto" }, snippet.slice(0, 160)),
  ];
}

// Marks what was searched for, where the browser can do that without touching the text.
function markFound(root, wanted) {
  if (!CSS.highlights) return;
  CSS.highlights.delete("found");
  if (!wanted) return;
  const ranges = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const text = node.data.toLowerCase();
    if (text.length !== node.data.length) continue; // a letter whose small form is longer: places do not agree
    for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
      const range = new Range();
      range.setStart(node, at);
      range.setEnd(node, at + wanted.length);
      ranges.push(range);
    }
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}

function linkOf(row) {
  return `#rollout/${row.step}/${encodeURIComponent(row.scenario_id)}/${row.index}`;
}

function rolloutDetail(data, row, group, pick) {
  const buttons = group.map((other) => {
    const button = element("button", { type: "button", "aria-pressed": String(other === row) }, `#${other.index} `, other.reward === null ? "masked" : signed(other.reward.value, 2));
    button.addEventListener("click", () => pick(other));
    return button;
  });
  const siblings = element("div", { class: "presets", role: "group", "aria-label": "The answers of this group" }, element("span", { class: "soft" }, "the group:"), buttons);
  return [
    element("h3", {}, `Step ${row.step}, ${row.scenario_id}, answer #${row.index} `, element("a", { class: "link", href: linkOf(row) }, "link")),
    ...rewardPart(row, `advantage ${signed(row.advantage)} · `),
    ...(group.length > 1 ? [siblings] : []),
    scenarioPart(row),
    ...answerPart(data, row),
  ];
}
