// The rollout browser: filters and an order over columns, a list, and the chosen rollout in full.

function startBrowser(data) {
  const form = document.getElementById("filters");
  const detail = document.getElementById("rollout-detail");
  const count = document.getElementById("count");
  const training = indices(data, 0);
  const disagreement = disagreements(data);
  const groups = groupsOf(data, training);
  let chosen = null;

  const show = (i) => {
    chosen = i;
    detail.replaceChildren(...(i === null ? [element("p", { class: "soft" }, "No rollout fits these filters.")] : rolloutDetail(data, i, groups, (other) => pick(other))));
    detail.scrollTop = 0;
    markFound(detail, wantedText(form));
  };
  const list = pagedList(document.getElementById("rollout-list"), "Rollouts", (i) => optionOf(data, i), show, () => detail.focus());
  const pick = (i) => (list.has(i) ? list.choose(i) : show(i));

  addOptions(form.elements.perspective, data.perspectives.map((view) => view.name));
  for (const tag of ["language", "culture"]) addOptions(form.elements[tag], [...new Set(data.scenarios.map((each) => each[tag]).filter(Boolean))].sort());

  function apply() {
    const passes = filterOf(data, form);
    const found = training.filter(passes);
    sortRows(data, found, form.elements.sort.value, disagreement);
    count.textContent = `${found.length.toLocaleString("en")} of ${training.length.toLocaleString("en")} rollouts`;
    list.show(found, found.includes(chosen) ? chosen : null);
  }
  const applyFromTop = () => {
    chosen = null;
    apply();
  };
  // A filter leaves the chosen rollout chosen if it can; another order begins at its top.
  form.addEventListener("input", (event) => (event.target.name === "sort" ? applyFromTop() : apply()));
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("clear").addEventListener("click", () => {
    form.reset();
    applyFromTop();
  });
  for (const button of document.querySelectorAll("[data-preset]")) {
    button.addEventListener("click", () => {
      form.reset();
      preset(form, button.dataset.preset);
      applyFromTop();
    });
  }
  apply();
  return {
    list,
    detail,
    showStep(step) {
      form.reset();
      form.elements.step_low.value = form.elements.step_high.value = step;
      applyFromTop();
      document.getElementById("rollouts").scrollIntoView();
      list.box.focus({ preventScroll: true });
    },
    showLinked(hash) {
      const i = training.find((each) => linkOf(data, each) === hash);
      if (i === undefined) return;
      form.reset();
      applyFromTop();
      list.choose(i);
      detail.scrollIntoView();
    },
  };
}

function indices(data, heldout) {
  return (data.rows.heldout ?? []).flatMap((value, i) => (value === heldout ? [i] : []));
}

function addOptions(select, values) {
  select.append(...values.map((value) => element("option", { value }, value)));
}

function preset(form, name) {
  const { sort, ambiguous, status } = form.elements;
  if (name === "worst") sort.value = "reward_up";
  else if (name === "best") sort.value = "reward_down";
  else if (name === "disagree") sort.value = "disagreement";
  else if (name === "ambiguous") ambiguous.checked = true;
  else if (name === "masked") status.value = "masked";
}

// How far the empathy perspectives are apart, as a share of their scales; -1 where fewer than two scored.
function disagreements(data) {
  const views = data.perspectives.filter((view) => view.kind === "empathy");
  return data.rows.step.map((_, i) => {
    let low = Infinity;
    let high = -Infinity;
    let num = 0;
    for (const view of views) {
      const score = data.judgments[view.name].score[i];
      if (score === null) continue;
      const share = (score - view.low) / (view.high - view.low);
      low = Math.min(low, share);
      high = Math.max(high, share);
      num++;
    }
    return num > 1 ? high - low : -1;
  });
}

function groupsOf(data, rows) {
  const groups = new Map();
  for (const i of rows) {
    const key = `${data.rows.step[i]} ${data.rows.scenario[i]}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(i);
  }
  return (i) => groups.get(`${data.rows.step[i]} ${data.rows.scenario[i]}`) ?? [i];
}

// ---- filters ----------------------------------------------------------------------------------

// The form as one test of a row. What is not filled in is not tested.
function filterOf(data, form) {
  const { rows } = data;
  const { value: name } = form.elements.perspective;
  const views = name ? data.perspectives.filter((view) => view.name === name) : data.perspectives;
  const columns = views.map((view) => data.judgments[view.name]);
  const within = (field) => {
    const low = form.elements[`${field}_low`].value;
    const high = form.elements[`${field}_high`].value;
    if (low === "" && high === "") return null;
    const [least, most] = [low === "" ? -Infinity : Number(low), high === "" ? Infinity : Number(high)];
    return (value) => value !== null && value >= least && value <= most;
  };
  const tests = [];
  const step = within("step");
  const reward = within("reward");
  const score = within("score");
  if (step) tests.push((i) => step(rows.step[i]));
  if (reward) tests.push((i) => reward(rows.reward[i]));
  if (score) tests.push((i) => columns.some((column) => score(column.score[i])));
  for (const tag of ["language", "culture"]) {
    const { value } = form.elements[tag];
    if (value) tests.push((i) => data.scenarios[rows.scenario[i]][tag] === value);
  }
  if (form.elements.ambiguous.checked) tests.push((i) => rows.ambiguous[i].length > 0);
  const status = form.elements.status.value;
  if (status) tests.push(statusTest(data, columns, status));
  const text = wantedText(form);
  if (text) tests.push(textTest(data, text));
  return (i) => tests.every((test) => test(i));
}

function wantedText(form) {
  return form.elements.text.value.trim().toLowerCase();
}

function statusTest(data, columns, status) {
  const { reward, finish } = data.rows;
  if (status === "rewarded") return (i) => reward[i] !== null;
  if (status === "masked") return (i) => reward[i] === null;
  if (status === "truncated") return (i) => data.texts[finish[i]] === "length";
  const wanted = data.statuses.indexOf(status);
  return (i) => columns.some((column) => column.status[i] === wanted);
}

function lowered(data) {
  data.lowered ??= data.texts.map((text) => text.toLowerCase());
  return data.lowered;
}

// Every text stands once in the data, so each is looked at once, however many rows have it.
function textTest(data, wanted) {
  const hits = Uint8Array.from(lowered(data), (text) => (text.includes(wanted) ? 1 : 0));
  const hit = (number) => number >= 0 && hits[number] === 1;
  const scenarios = data.scenarios.map((each) => each.id.toLowerCase().includes(wanted) || (each.parts ?? each.messages.map(([, text]) => text)).some(hit));
  const { scenario, frame, analysis, response, masked } = data.rows;
  const reasons = data.perspectives.map((view) => data.judgments[view.name].reason);
  return (i) => scenarios[scenario[i]] || hit(analysis[i]) || hit(response[i]) || hit(frame[i]) || hit(masked[i]) || reasons.some((column) => hit(column[i]));
}

function sortRows(data, found, order, disagreement) {
  const { reward, tokens } = data.rows;
  const keys = {
    reward_up: (i) => reward[i] ?? Infinity,
    reward_down: (i) => -(reward[i] ?? -Infinity),
    disagreement: (i) => -disagreement[i],
    long: (i) => -tokens[i],
    short: (i) => tokens[i],
  };
  const key = keys[order];
  if (!key) return; // the order of the files
  const values = new Float64Array(data.rows.step.length);
  for (const i of found) values[i] = key(i);
  found.sort((a, b) => (values[a] === values[b] ? a - b : values[a] < values[b] ? -1 : 1));
}

// ---- what is shown ----------------------------------------------------------------------------

function optionOf(data, i) {
  const { rows } = data;
  const scores = data.perspectives.map((view, p) => {
    const score = data.judgments[view.name].score[i];
    return element("span", { class: "mini", title: view.name }, element("span", { class: `swatch c${p}` }), element("span", { class: "soft" }, view.name.slice(0, 3)), " ", figure(score, view.high > 20 ? 0 : 1));
  });
  const reward = rows.reward[i] === null ? element("span", { class: "badge bad" }, "masked") : element("strong", {}, signed(rows.reward[i], 2));
  const snippet = textOf(data, rows.response[i]) ?? textOf(data, rows.analysis[i]) ?? completionOf(data, i);
  return [
    element("div", { class: "line" }, element("span", {}, `step ${rows.step[i]} · ${data.scenarios[rows.scenario[i]].id} #${rows.index[i]}`), element("span", {}, rows.ambiguous[i].length ? [element("span", { class: "badge" }, "ambiguous"), " "] : null, reward)),
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

function linkOf(data, i) {
  const { step, scenario, index } = data.rows;
  return `#rollout/${step[i]}/${encodeURIComponent(data.scenarios[scenario[i]].id)}/${index[i]}`;
}

function rolloutDetail(data, i, groups, pick) {
  const { rows } = data;
  const scenario = data.scenarios[rows.scenario[i]];
  const siblings = groups(i);
  const buttons = siblings.map((other) => {
    const button = element("button", { type: "button", "aria-pressed": other === i ? "true" : "false" }, `#${rows.index[other]} `, rows.reward[other] === null ? "masked" : signed(rows.reward[other], 2));
    button.addEventListener("click", () => pick(other));
    return button;
  });
  return [
    element("h3", {}, `Step ${rows.step[i]}, ${scenario.id}, answer #${rows.index[i]} `, element("a", { class: "link", href: linkOf(data, i) }, "link")),
    ...rewardPart(data, i).filter(Boolean),
    siblings.length > 1 ? element("div", { class: "presets", role: "group", "aria-label": "The answers of this group" }, element("span", { class: "soft" }, "the group:"), buttons) : null,
    scenarioPart(data, i),
    ...answerPart(data, i),
  ].filter(Boolean);
}
