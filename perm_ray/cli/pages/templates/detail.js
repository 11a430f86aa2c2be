// One rollout, whole: the scenario, the answer, and beside each part of it what the judges who read it say.

function scenarioPart(row) {
  const tags = [row.language, row.culture].filter(Boolean).join(", ");
  const parts = [["who", row.persona], ["what happens", row.scenario], ["they say", row.query]];
  const prompt = row.prompt.map(({ role, content }) => [element("h5", {}, role), prose("p", content)]);
  return element("section", { class: "card" },
    element("h4", {}, `Scenario ${row.scenario_id}`, element("span", { class: "soft" }, ` ${tags}`)),
    row.query ? element("dl", { class: "scenario" }, parts.map(([name, text]) => element("div", {}, element("dt", {}, name), prose("dd", text)))) : null,
    element("details", { open: !row.query }, element("summary", {}, "The prompt as the policy read it"), prompt));
}

function rewardPart(row, learned = "") {
  const { reward, ambiguous } = row;
  const value = reward === null
    ? [element("span", { class: "badge bad" }, "masked"), " ", row.masked_because || "no reward"]
    : ["reward ", element("strong", {}, signed(reward.value)), ` = empathy ${figure(reward.empathy)} ${plus(reward.bystander)} bystander ${plus(reward.length)} length`];
  return [
    element("p", { class: "reward" }, value),
    element("p", { class: "facts soft" }, `${learned}policy version ${row.version} · ${row.tokens} tokens · ended by ${row.finish_reason}`),
    ambiguous.length ? element("ul", { class: "notes" }, ambiguous.map((reason) => element("li", {}, reason))) : [],
  ].flat();
}

function plus(value) {
  return value < 0 ? `− ${figure(-value)}` : `+ ${figure(value)}`;
}

// The two sections, each with the judgments of those who read it beside it.
function answerPart(data, row) {
  const part = (title, text, says) => {
    const name = title.toLowerCase();
    const judges = data.perspectives.map((view, p) => (view.reads === name ? judgmentCard(view, p, row.judgments[view.name]) : null));
    const body = text === null ? element("p", { class: "missing" }, `The answer has no ${name}.`) : prose("p", text);
    return element("section", { class: "part" },
      element("div", { class: "card" }, element("h4", {}, title, element("span", { class: "soft" }, ` ${says}`)), body),
      element("div", { class: "judgments" }, judges));
  };
  return [
    part("Analysis", row.analysis, "not shown to the person"),
    part("Response", row.response, "what the person reads"),
    element("details", {}, element("summary", {}, "The completion as it was sampled"), prose("p", row.completion)),
  ];
}

function judgmentCard(view, p, judgment) {
  const head = element("h5", {}, element("span", { class: `swatch c${p}` }), view.name);
  const card = element("section", { class: "card judgment" }, head);
  if (!judgment) {
    card.append(element("p", { class: "soft" }, "not asked"));
    return card;
  }
  const { score, status, distribution, reason } = judgment;
  const criteria = Object.entries(judgment.criteria);
  if (score === null) head.append(" ", element("span", { class: "badge bad" }, status));
  else {
    head.append(" ", element("strong", {}, figure(score, 2)), element("span", { class: "soft" }, ` of ${view.high}`));
    card.append(scoreBar(view, p, score));
  }
  if (distribution.length) card.append(distributionPart(view, p, distribution));
  if (criteria.length) card.append(element("ul", { class: "criteria" }, criteria.map(([name, value]) => element("li", {}, `${name} `, element("span", { class: "value" }, figure(value, 1))))));
  if (reason) card.append(element("blockquote", { dir: "auto", class: "prose" }, reason));
  card.append(element("p", { class: "facts soft" }, judgmentFacts(judgment).join(" · ")));
  return card;
}

function judgmentFacts(judgment) {
  const { mass, entropy, sampled, spread, tries, latency_s, tokens, judge, rubric_digest } = judgment;
  return [
    [mass !== null, `probability of a valid answer ${figure(mass, 2)}`],
    [entropy !== null, `entropy ${figure(entropy, 2)} nats`],
    [sampled !== null, `wrote ${figure(sampled, 0)}`],
    [spread !== null, `spread ${figure(spread, 2)}`],
    [tries !== 1, `tries ${tries}`],
    [latency_s, `took ${figure(latency_s, 2)} s`],
    [tokens.prompt + tokens.completion, `tokens ${tokens.prompt} read (${tokens.cached} cached), ${tokens.completion} written`],
    [judge, `judge ${judge}`],
    [rubric_digest, `rubric ${rubric_digest}`],
  ].filter(([known]) => known).map(([, words]) => words);
}

function scoreBar(view, p, score) {
  const share = Math.min(1, Math.max(0, (score - view.low) / (view.high - view.low)));
  return drawing("svg", { class: "scorebar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    drawing("rect", { class: "track", width: 100, height: 6 }), drawing("rect", { class: `bar c${p}`, width: 100 * share, height: 6 }));
}

// How likely the judge found each score.
function distributionPart(view, p, shares) {
  const percent = shares.map((share) => `${Math.round(100 * share)}%`);
  const words = percent.map((text, k) => `${view.low + k}: ${text}`).join(", ");
  if (shares.length > 21) return element("p", { class: "soft" }, words);
  const width = shares.length * 28;
  return drawing("svg", { class: "distribution", viewBox: `0 0 ${width} 58`, width, height: 58, role: "img", "aria-label": `probabilities: ${words}` },
    shares.map((share, k) => {
      const height = share * 30;
      const middle = { x: k * 28 + 14, "text-anchor": "middle" };
      return [
        drawing("rect", { class: `bar c${p}`, x: k * 28 + 5, width: 18, y: 44 - height, height }),
        drawing("text", { ...middle, y: 56 }, view.low + k),
        share >= 0.05 ? drawing("text", { ...middle, y: 41 - height, class: "share" }, percent[k]) : null,
      ];
    }));
}
