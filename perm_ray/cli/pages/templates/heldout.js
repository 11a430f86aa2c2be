// Held-out answers of two evaluations side by side: the same scenario, the same random numbers.

function startHeldout(data) {
  const steps = [...new Set(data.heldout.map((row) => row.step))].sort((a, b) => a - b);
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
  const list = pagedList(document.getElementById("heldout-list"), "Held-out scenarios", pairOption, show, () => detail.focus());
  const apply = () => {
    const pairs = pairsOf(data.heldout, Number(before.value), Number(after.value));
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

function pairsOf(rows, before, after) {
  const name = (row) => `${row.scenario_id} ${row.index}`;
  const later = new Map(rows.filter((row) => row.step === after).map((row) => [name(row), row]));
  return rows.filter((row) => row.step === before && later.has(name(row))).map((first) => {
    const second = later.get(name(first));
    return { first, second, change: first.reward && second.reward ? second.reward.value - first.reward.value : null };
  });
}

function pairOption({ first, second, change }) {
  const rewards = [first, second].map((row) => signed(row.reward?.value, 2));
  return [
    element("div", { class: "line" }, element("span", {}, `${first.scenario_id} #${first.index}`), element("strong", {}, signed(change, 2))),
    element("div", { class: "line" }, element("span", { class: "soft" }, rewards.join(" → "))),
    element("div", { class: "snippet", dir: "auto" }, first.query.slice(0, 160)),
  ];
}

function pairDetail(data, { first, second, change }, titles) {
  const side = (row, title) => element("section", { class: "side", "aria-label": title }, element("h4", { class: "title" }, title), rewardPart(row), answerPart(data, row));
  return [
    element("h3", {}, `${first.scenario_id}: ${change === null ? "one of the two is masked" : `reward ${signed(change)}`}`),
    scenarioPart(first),
    element("div", { class: "sides" }, side(first, titles[0]), side(second, titles[1])),
  ];
}
