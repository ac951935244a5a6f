// One watch: what is known of it, who was told and why, and all that happened in the order in which it did.

class WatchView {
  constructor() {
    this.section = byId("watch");
    this.body = this.section.querySelector(".rows");
    this.last = null;
  }

  enter({ path }) {
    if (this.path === path) return;
    this.path = path;
    this.last = null;
    fill(byId("watch-title"), shown(path));
    fill(this.body, make("p.none", "Asking the daemon …"));
  }

  async load({ path, query }, signal) {
    try {
      return await call("GET", `/v1/watches/${encodeURIComponent(path)}/history?${query}`, signal);
    } catch (error) {
      if (error.status !== 404) throw error;
      throw new Refused(404,
        "No such watch is known. Its asset was never added, or the watch ended so long ago that it was pruned.");
    }
  }

  show(_route, history) {
    const { watch } = history;
    fill(byId("watch-title"), shown(watch.asset_id));
    document.title = `${word(watch)} · ${watch.asset_id} · assetwatch`;
    const [before, now] = [this.last, { id: String(watch.id), word: word(watch) }];
    // Said once for each change, and only of what is looked at.
    if (before?.id === now.id && before.word !== now.word) say(`${watch.asset_id} is now ${now.word}.`);
    this.last = now;
    fill(this.body, heading(watch), blocked(history), known(watch), told(history), timeline(history));
  }
}

function heading(watch) {
  const data = { asset: watch.asset_id, watch: watch.id };
  const waiting = watch.state === "waiting";
  return make("div.heading",
    standingOf(watch),
    make("p.sum", sum(watch)),
    make("p.acts",
      waiting && button("poll", "Poll now", data),
      waiting && button("cancel", "Cancel …", data, "grave")));
}

const polls = (watch) => several(watch.polls, "poll", "polls");

function sum(watch) {
  if (watch.state === "waiting") {
    const next = nextPoll(watch);
    return [polls(watch), next === "under way" ? "; the next is " : "; the next: ", next];
  }
  const took = span(millis(watch.settled_at) - millis(watch.created_at));
  return [`${polls(watch)} in ${took}; ended `, when(watch.settled_at)];
}

/** Why nothing goes on, where that is not the watch's own affair. */
function blocked({ account_closed: closed }) {
  if (closed === null) return null;
  const { name, closure, last_error: error } = closed;
  const sentence = live.overview?.accounts.find((account) => account.name === name)?.standing;
  const why = sentence ?? `${closure} (${error ?? "no reason is known"})`;
  return make("p.warning", "Account ", shown(name), ": ", said(why), ".");
}

function known(watch) {
  const size = watch.width !== null && watch.height !== null && `${watch.width} × ${watch.height}`;
  return make("section", { "aria-label": "What is known" }, facts([
    ["url", watch.url && link(watch.url)],
    ["type", watch.type && shown(watch.type)],
    ["size", size],
    ["duration", watch.duration !== null && `${count(watch.duration)} s`],
    ["frames", watch.frames !== null && count(watch.frames)],
    ["account", make("a", { href: address("watches", { account: watch.account }) }, shown(watch.account))],
    ["batch", watch.batch && make("a", { href: address("watches", { batch: watch.batch }) }, shown(watch.batch))],
    ["callback", watch.callback_url && link(watch.callback_url)],
    ["patience", watch.patience && shown(watch.patience)],
    ["metadata", watch.metadata !== null && json(watch.metadata, "Metadata")],
    ["last error", watch.last_error && shown(watch.last_error)],
    ["watch", `number ${watch.id}`],
  ]));
}

const json = (value, label) => lines(JSON.stringify(value, null, 2), label);

// ---- who was told

function told({ hooks, deliveries, events: facts }) {
  const type = ({ event_id: event }) => facts.find(({ id }) => id === event)?.type ?? "";
  const one = (delivery) => make("li.delivery", { "data-key": delivery.id },
    standing(delivery.state),
    make("span", `delivery ${delivery.id}, `, shown(type(delivery)),
      `, ${several(delivery.attempts, "attempt", "attempts")}`),
    retryButton(delivery));
  const list = hooks.map(({ hook, why, change }) => item(hook,
    make("h3", to(address("deliveries", { hook }), shown(hook))),
    make("p", said(why), "."),
    change !== null && make("p.change", "To change it: ", said(change), "."),
    make("ul.plain", deliveries.filter((delivery) => delivery.hook === hook).map(one))));
  return make("section", { "aria-labelledby": "told-title" },
    make("h2", { id: "told-title" }, "Who is told"),
    hooks.length === 0 ? make("p.none", "No hook is configured, and no callback was given.") : make("ul.plain.told", list));
}

// ---- what happened

/** A station of the timeline, with what it says in a line and what there is below that. */
const mark = (key, instant, kind, what, more = []) => ({ key, instant, at: millis(instant), kind, what, more });

function timeline(history) {
  const marks = marksOf(history).filter((mark) => mark && !Number.isNaN(mark.at));
  marks.sort((one, other) => one.at - other.at);
  const zero = millis(history.watch.created_at);
  const station = ({ key, instant, at, kind, what, more }) => make("li", { "data-key": key, class: `is-${kind}` },
    make("p.at", exactly(instant), " ",
      make("span.quiet", kind === "future" ? when(instant, "due") : offset(at - zero))),
    make("div", make("p.what", what), more));
  return make("section", { "aria-labelledby": "timeline-title" },
    make("h2", { id: "timeline-title" }, "Timeline"),
    make("ol.timeline", marks.map(station)));
}

/** After the beginning; nothing where it is the beginning. */
const offset = (ms) => (ms < 1 ? "" : `+${ms < 1000 ? `${ms} ms` : span(ms)}`);

function marksOf({ watch, events: facts, deliveries, attempts }) {
  const hookOf = new Map(deliveries.map(({ id, hook }) => [String(id), hook]));
  const attempt = (row) => {
    const { delivery_id: delivery, number, started_at: at, outcome: how } = row;
    const what = [`Attempt ${number} at delivery ${delivery} to `, shown(hookOf.get(String(delivery)) ?? "?"), ": ", outcome(row)];
    return mark(`attempt ${delivery} ${number}`, at, how ?? "waiting", what, output(row));
  };
  const next = ({ id, hook, state, due_at: due }) => state === "waiting" && millis(due) > clock.now()
    && mark(`next ${id}`, due, "future", [`Next attempt at delivery ${id} to `, shown(hook)]);
  return [...marksOfPolls(watch), ...facts.map(fact), ...attempts.map(attempt), ...deliveries.map(next)];
}

function marksOfPolls(watch) {
  const first = [
    mark("added", watch.created_at, "waiting", "Added"),
    mark("first", watch.first_polled_at, "waiting", "First poll"),
    mark("processing", watch.processing_at, "waiting", [shown("processing"), " seen first"]),
    mark("missing", watch.missing_at, "failed", "First of the answers that the API does not know the asset"),
  ];
  if (watch.state !== "waiting") {
    return [...first, mark("ended", watch.settled_at, watch.state, [ending(watch), `, after ${polls(watch)}`])];
  }
  const failed = watch.failures > 0;
  const many = watch.failures > 1 ? `This and ${watch.failures - 1} before it failed.` : "It failed.";
  const still = watch.status !== null && ["Still ", shown(watch.status), "."];
  return [
    ...first,
    watch.polls > 1 && mark("last", watch.last_polled_at, failed ? "failed" : "waiting",
      [`Poll ${count(watch.polls)}, the latest. `, failed ? many : still],
      watch.last_error && make("p.error", shown(watch.last_error))),
    millis(watch.due_at) > clock.now() && mark("next", watch.due_at, "future", "Next poll"),
  ];
}

const WHY = {
  missing: "the API did not know the asset for longer than the grace",
  rejected: "the API refused the request several times in a row",
  patience: "the asset did not settle within its patience",
};

function ending({ state, status, reason }) {
  if (state === "settled") return ["Settled: ", shown(status ?? "")];
  return state === "abandoned" ? ["Abandoned: ", WHY[reason] ?? shown(reason ?? "")] : "Cancelled";
}

function fact({ id, type, body, created_at: at }) {
  return mark(id, at, "event", ["Event ", shown(type)],
    make("details", make("summary", "What is sent"), make("p.quiet", shown(id)), json(body, "Body of the event")));
}

function outcome({ outcome: how, code, error, started_at: begun, finished_at: done }) {
  if (how === null) return "under way";
  const took = done ? `, took ${span(millis(done) - millis(begun))}` : "";
  return [make("b", how === "unknown" ? "unknown: it may have been received" : how),
    code === null ? "" : ` (${code})`, took, error && [": ", shown(error)]];
}

function output({ output: out, errors }) {
  const part = (label, text) => text && [make("p.quiet", label), lines(text, label)];
  if (!out && !errors) return [];
  return make("details", make("summary", "Its output"), part("Answer, or stdout", out), part("stderr", errors));
}
