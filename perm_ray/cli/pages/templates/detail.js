// One rollout, whole: the scenario, the answer, and beside each part of it what the judges who read it say.

const ANALYSIS = "\ue000"; // as in pack.py
const RESPONSE = "\ue001";

function textOf(data, number) {
  return number < 0 ? null : data.texts[number];
}

function completionOf(data, i) {
  const { frame, framed, analysis, response } = data.rows;
  const text = data.texts[frame[i]];
  const put = (whole, mark, part) => whole.replace(mark, () => textOf(data, part) ?? "");
  return framed[i] ? put(put(text, ANALYSIS, analysis[i]), RESPONSE, response[i]) : text;
}

function scenarioPart(data, i) {
  const scenario = data.scenarios[data.rows.scenario[i]];
  const tags = [scenario.language, scenario.culture].filter(Boolean).join(", ");
  const head = element("h4", {}, `Scenario ${scenario.id}`, tags ? element("span", { class: "soft" }, ` ${tags}`) : null);
  const names = ["who", "what happens", "they say"];
  const parts = scenario.parts
    ? element("dl", { class: "scenario" }, scenario.parts.map((part, k) => element("div", {}, element("dt", {}, names[k]), prose("dd", data.texts[part]))))
    : null;
  const prompt = scenario.messages.map(([role, text]) => [element("h5", {}, role), prose("p", data.texts[text])]);
  const whole = element("details", {}, element("summary", {}, "The prompt as the policy read it"), prompt);
  if (!scenario.parts) whole.open = true;
  return element("section", { class: "card" }, head, parts, whole);
}

// Any direction of writing, line breaks kept.
function prose(tag, text) {
  return element(tag, { class: "prose", dir: "auto" }, text);
}

function rewardPart(data, i) {
  const { heldout, reward, empathy, bystander, length, masked, advantage, version, tokens, finish, ambiguous } = data.rows;
  const learned = heldout[i] ? "" : `advantage ${signed(advantage[i])} · `; // nothing is learned from held-out answers
  const facts = element("p", { class: "facts soft" },
    `${learned}policy version ${version[i]} · ${tokens[i]} tokens · ended by ${textOf(data, finish[i])}`);
  const value = reward[i] === null
    ? element("p", { class: "reward" }, element("span", { class: "badge bad" }, "masked"), " ", textOf(data, masked[i]) || "no reward")
    : element("p", { class: "reward" }, "reward ", element("strong", {}, signed(reward[i])),
      ` = empathy ${figure(empathy[i])} ${plus(bystander[i])} bystander ${plus(length[i])} length`);
  const why = ambiguous[i].map((reason) => element("li", {}, data.texts[reason]));
  return [value, facts, why.length ? element("ul", { class: "notes" }, why) : null];
}

function plus(value) {
  return value < 0 ? `− ${figure(-value)}` : `+ ${figure(value)}`;
}

// The two sections, each with the judgments of those who read it beside it.
function answerPart(data, i) {
  const { analysis, response } = data.rows;
  const sections = [["analysis", analysis[i], "not shown to the person"], ["response", response[i], "what the person reads"]];
  return [
    ...sections.map(([name, text, says]) => {
      const judges = data.perspectives.map((view, p) => (view.reads === name ? judgmentCard(data, p, i) : null));
      const body = text < 0 ? element("p", { class: "missing" }, `The answer has no ${name}.`) : prose("p", data.texts[text]);
      return element("section", { class: "part" },
        element("div", { class: "card" }, element("h4", {}, name[0].toUpperCase() + name.slice(1), element("span", { class: "soft" }, ` ${says}`)), body),
        element("div", { class: "judgments" }, judges));
    }),
    element("details", {}, element("summary", {}, "The completion as it was sampled"), prose("p", completionOf(data, i))),
  ];
}

function judgmentCard(data, p, i) {
  const view = data.perspectives[p];
  const columns = data.judgments[view.name];
  const status = columns.status[i];
  const head = element("h5", {}, element("span", { class: `swatch c${p}` }), view.name);
  const card = element("section", { class: "card judgment" }, head);
  if (status < 0) {
    card.append(element("p", { class: "soft" }, "not asked"));
    return card;
  }
  const score = columns.score[i];
  if (score === null) head.append(" ", element("span", { class: "badge bad" }, data.statuses[status]));
  else head.append(" ", element("strong", {}, figure(score, 2)), element("span", { class: "soft" }, ` of ${view.high}`));
  if (score !== null) card.append(scoreBar(view, p, score));
  if (columns.distribution[i].length) card.append(distribution(view, p, columns.distribution[i]));
  if (columns.criteria[i].length) card.append(element("ul", { class: "criteria" }, columns.criteria[i].map(([name, value]) => element("li", {}, `${name} `, element("span", { class: "value" }, figure(value, 1))))));
  const reason = textOf(data, columns.reason[i]);
  if (reason) card.append(element("blockquote", { dir: "auto", class: "prose" }, reason));
  card.append(element("p", { class: "facts soft" }, judgmentFacts(data, columns, i).join(" · ")));
  return card;
}

function judgmentFacts(data, columns, i) {
  const [read, cached, written] = columns.tokens[i];
  return [
    ["probability of a valid answer", columns.mass[i], (value) => figure(value, 2)],
    ["entropy", columns.entropy[i], (value) => `${figure(value, 2)} nats`],
    ["wrote", columns.sampled[i], (value) => figure(value, 0)],
    ["spread", columns.spread[i], (value) => figure(value, 2)],
    ["tries", columns.tries[i] === 1 ? null : columns.tries[i], String],
    ["took", columns.latency_s[i] || null, (value) => `${figure(value, 2)} s`],
    ["tokens", read + written || null, () => `${read} read (${cached} cached), ${written} written`],
    ["judge", textOf(data, columns.judge[i]), String],
    ["rubric", textOf(data, columns.rubric[i]), String],
  ].filter(([, value]) => value !== null).map(([name, value, words]) => `${name} ${words(value)}`);
}

function scoreBar(view, p, score) {
  const share = Math.min(1, Math.max(0, (score - view.low) / (view.high - view.low)));
  return drawing("svg", { class: "scorebar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    drawing("rect", { class: "track", width: 100, height: 6 }), drawing("rect", { class: `bar c${p}`, width: 100 * share, height: 6 }));
}

// How likely the judge found each score.
function distribution(view, p, perMille) {
  const words = perMille.map((value, k) => `${view.low + k}: ${Math.round(value / 10)}%`).join(", ");
  const num = perMille.length;
  if (num > 21) return element("p", { class: "soft" }, words);
  const svg = drawing("svg", { class: "distribution", viewBox: `0 0 ${num * 28} 58`, width: num * 28, height: 58, role: "img", "aria-label": `probabilities: ${words}` });
  perMille.forEach((value, k) => {
    const height = (value / 1000) * 30;
    const middle = { x: k * 28 + 14, "text-anchor": "middle" };
    svg.append(drawing("rect", { class: `bar c${p}`, x: k * 28 + 5, width: 18, y: 44 - height, height }));
    svg.append(drawing("text", { ...middle, y: 56 }, view.low + k));
    if (value >= 50) svg.append(drawing("text", { ...middle, y: 41 - height, class: "share" }, `${Math.round(value / 10)}%`));
  });
  return svg;
}
