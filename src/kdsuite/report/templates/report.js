"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const PAGE = 20;

  // ------------------------------------------------------------------ light and dark
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // ------------------------------------------------------------------ values of a figure's marks
  const tip = $("tip");
  const show = (event) => {
    const mark = event.target.closest?.(".tip");
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 4))}px`;
    tip.style.top = `${Math.max(4, event.clientY - box.height - 10)}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);

  // ------------------------------------------------------------------ explorer
  const tasks = Object.fromEntries(
    [...document.querySelectorAll("script.data")].map((s) => [s.dataset.task, JSON.parse(s.textContent)]),
  );
  const state = { shown: [], page: 0 };
  const element = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const options = (select, pairs) => select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
  const data = () => tasks[$("f-task").value];

  /** The prompt as it was sent: the task's pattern with this example's inputs. */
  const prompt = (d, example) =>
    d.prompt.replace(/\ue000(.*?)\ue001/g, (_, name) => d.pool[example[1][d.fields.indexOf(name)]]);

  /** Scores (0–1) of all runs of a method on an example. */
  const scores = (d, example, method) =>
    example[4].filter((_, run) => d.runs[run][0] === method).map((answer) => example[3][answer][1]);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  /** Of a method and its student's B0 on an example: the difference of their mean scores; 0 without a B0. */
  const gain = (d, e, m) => {
    const baseline = d.baseline[m];
    return baseline === null ? 0 : mean(scores(d, e, m)) - mean(scores(d, e, baseline));
  };
  /** Whether more than half of a method's runs are right, or wrong. */
  const most = (d, e, m, right) => mean(scores(d, e, m).map((s) => ((s === 1) === right ? 1 : 0))) > 0.5;
  const turned = (d, e, m, right) => d.baseline[m] !== null && most(d, e, m, right) && most(d, e, d.baseline[m], !right);

  const outcomes = {
    right: (d, e, m) => scores(d, e, m).every((s) => s === 1),
    wrong: (d, e, m) => scores(d, e, m).some((s) => s < 1),
    gained: (d, e, m) => gain(d, e, m) > 0,
    lost: (d, e, m) => gain(d, e, m) < 0,
    mended: (d, e, m) => turned(d, e, m, true),
    broken: (d, e, m) => turned(d, e, m, false),
  };

  /** Trained methods disagree when their mean scores differ. */
  const disagree = (d, e) => new Set(d.trained.map((m) => mean(scores(d, e, m)).toFixed(2))).size > 1;
  const contains = (d, e, text) =>
    [...e[1].map((i) => d.pool[i]), ...e[2], ...e[3].map((a) => a[0]), e[0]].some((s) => s.toLowerCase().includes(text));

  const filter = () => {
    const d = data();
    const method = $("f-method").value;
    const methods = method === "all" ? d.trained : [Number(method)];
    const asked = $("f-outcome").value;
    const text = $("f-text").value.trim().toLowerCase();
    state.shown = d.examples.filter(
      (e) =>
        (asked === "any" || methods.some((m) => outcomes[asked](d, e, m))) &&
        (!$("f-disagree").checked || disagree(d, e)) &&
        (!text || contains(d, e, text)),
    );
    state.page = 0;
    const cut = d.examples.length < d.total ? ` (the most disputed ${d.examples.length.toLocaleString("en")} of ${d.total.toLocaleString("en")})` : "";
    $("count").textContent = `${state.shown.length.toLocaleString("en")} of ${d.examples.length.toLocaleString("en")} examples${cut}`;
    draw();
  };

  const grade = (score) => (score === 1 ? "right" : score > 0 ? "partly" : "wrong");

  /** One line per method: each different answer once, with the seeds that gave it. */
  const answers = (d, example) => {
    const list = element("dl", "answers");
    list.append(element("dt", "", "references"), element("dd", "", example[2].join(" · ")));
    d.methods.forEach((label, method) => {
      const line = element("dd");
      const given = new Map();
      example[4].forEach((answer, run) => {
        if (d.runs[run][0] === method) given.set(answer, [...(given.get(answer) ?? []), d.runs[run][1]]);
      });
      for (const [answer, seeds] of given) {
        const [text, score] = example[3][answer];
        const part = element("span");
        const known = seeds.filter((seed) => seed !== null);
        part.append(`${text || "(empty)"} `, element("span", `tag ${grade(score)}`, score > 0 && score < 1 ? `${d.metric} ${score}` : grade(score)));
        if (given.size > 1 && known.length) part.append(element("span", "quiet", ` seed ${known.join(", ")}`));
        line.append(part, " ");
      }
      list.append(element("dt", "", label), line);
    });
    return list;
  };

  const card = (d, example) => {
    const node = element("article", "example");
    const text = element("p", "prompt short", d.prompt ? prompt(d, example) : "(the prepared examples are no longer on disk)");
    text.addEventListener("click", () => text.classList.toggle("short"));
    node.append(element("div", "id", example[0]), text, answers(d, example));
    return node;
  };

  const draw = () => {
    const d = data();
    const pages = Math.max(1, Math.ceil(state.shown.length / PAGE));
    const start = state.page * PAGE;
    $("examples").replaceChildren(...state.shown.slice(start, start + PAGE).map((e) => card(d, e)));
    $("place").textContent = `page ${state.page + 1} of ${pages}`;
    $("previous").disabled = state.page === 0;
    $("next").disabled = state.page >= pages - 1;
  };

  const turn = (step) => () => {
    state.page += step;
    draw();
    $("explorer").scrollIntoView();
  };
  const choose = () => {
    options($("f-method"), [["all", "any trained"], ...data().methods.map((label, i) => [i, label])]);
    filter();
  };

  if (Object.keys(tasks).length) {
    options($("f-task"), Object.entries(tasks).map(([name, d]) => [name, d.task]));
    $("f-task").addEventListener("change", choose);
    for (const id of ["f-method", "f-outcome", "f-disagree"]) $(id).addEventListener("change", filter);
    $("f-text").addEventListener("input", filter);
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("previous").addEventListener("click", turn(-1));
    $("next").addEventListener("click", turn(1));
    choose();
  }
})();
