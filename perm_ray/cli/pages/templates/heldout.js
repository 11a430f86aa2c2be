// Held-out answers of two evaluations side by side: the same scenario, the same random numbers.

function startHeldout(data) {
  const rows = indices(data, 1);
  const steps = [...new Set(rows.map((i) => data.rows.step[i]))].sort((a, b) => a - b);
  if (steps.length < 2) return null;
  document.getElementById("heldout-missing").hidden = true;
  document.getElementById("heldout-browser").hidden = false;
  const form = document.getElementById("heldout-form");
  const detail = document.getElementById("heldout-detail");
  const { before, after, sort } = form.elements;
  for (const select of [before, after]) {
    select.append(...steps.map((step) => element("option", { value: step }, step === 0 ? "before training" : `after step ${step}`)));
  }
  before.value = steps[0];
  after.value = steps[steps.length - 1];

  const show = (pair) => detail.replaceChildren(...(pair ? pairDetail(data, pair, [before, after].map((each) => each.selectedOptions[0].textContent)) : []));
  const list = pagedList(document.getElementById("heldout-list"), "Held-out scenarios", (pair) => pairOption(data, pair), show, () => detail.focus());
  const apply = () => {
    const pairs = pairsOf(data, rows, Number(before.value), Number(after.value));
    if (sort.value !== "scenario") {
      const sign = sort.value === "up" ? -1 : 1;
      pairs.sort((a, b) => (a.change === null) - (b.change === null) || sign * (a.change - b.change));
    }
    list.show(pairs);
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
  return { list, detail };
}

function pairsOf(data, rows, before, after) {
  const { step, scenario, index, reward } = data.rows;
  const keyed = (wanted) => new Map(rows.filter((i) => step[i] === wanted).map((i) => [`${scenario[i]} ${index[i]}`, i]));
  const later = keyed(after);
  return [...keyed(before)].filter(([key]) => later.has(key)).map(([key, first]) => {
    const second = later.get(key);
    const known = reward[first] !== null && reward[second] !== null;
    return { first, second, change: known ? reward[second] - reward[first] : null };
  });
}

function pairOption(data, { first, second, change }) {
  const { rows } = data;
  const scenario = data.scenarios[rows.scenario[first]];
  const said = scenario.parts ? data.texts[scenario.parts[2]] : "";
  return [
    element("div", { class: "line" }, element("span", {}, `${scenario.id} #${rows.index[first]}`), element("strong", {}, signed(change, 2))),
    element("div", { class: "line" }, element("span", { class: "soft" }, `${signed(rows.reward[first], 2)} → ${signed(rows.reward[second], 2)}`)),
    element("div", { class: "snippet", dir: "auto" }, said.slice(0, 160)),
  ];
}

function pairDetail(data, { first, second, change }, titles) {
  const scenario = data.scenarios[data.rows.scenario[first]];
  const side = (i, title) => element("section", { class: "side", "aria-label": title }, element("h4", { class: "title" }, title), ...rewardPart(data, i).filter(Boolean), ...answerPart(data, i));
  return [
    element("h3", {}, `${scenario.id}: ${change === null ? "one of the two is masked" : `reward ${signed(change)}`}`),
    scenarioPart(data, first),
    element("div", { class: "sides" }, side(first, titles[0]), side(second, titles[1])),
  ];
}
