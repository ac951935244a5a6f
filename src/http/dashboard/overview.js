// What is always in sight: the counts, what needs attention, the two charts, the hooks and the accounts.

/** An address within the page. */
function address(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = new URLSearchParams(given).toString();
  return text === "" ? `#/${path}` : `#/${path}?${text}`;
}

const watchAddress = (watch) => address(`watch/${encodeURIComponent(watch.asset_id)}`, { watch: watch.id });

/** Where a lag begins to be worth a word, in seconds. */
const LATE = 30;

function showOverview(overview) {
  document.querySelector("aside").hidden = false;
  fill(byId("figures"), figures(overview));
  const alarms = alarmsOf(overview);
  byId("alarms").hidden = alarms.length === 0;
  fill(byId("alarms").querySelector("ul"), alarms);
  showPulse(overview.settled_per_minute);
  fill(byId("waits").querySelector(".body"), waits(overview.waiting_times));
  fill(byId("hooks").querySelector(".body"), overview.hooks.length > 0
    ? make("ul.plain", overview.hooks.map(hook))
    : make("p.none", said("No hook is configured: nobody is told. `[[hooks]]` in the configuration names one.")));
  fill(byId("accounts").querySelector(".body"), make("ul.plain", overview.accounts.map(account)));
  fill(byId("statuses"), Object.keys(overview.statuses).map((status) => make("option", { value: status })));
  fill(byId("accounts-known"), overview.accounts.map(({ name }) => make("option", { value: name })));
  fill(byId("hooks-known"), overview.hooks.map(({ name }) => make("option", { value: name })));
  fill(byId("about"), `assetwatch ${overview.version}`);
}

// ---- counts

function figures({ watches, statuses, deliveries, lag_seconds: lag }) {
  const words = Object.entries(statuses).sort(([, one], [, other]) => other - one);
  const word = ([status, n]) => item(status,
    to(address("watches", { state: "settled", status }), shown(status), " ", make("b", count(n))));
  const backlog = (state) => {
    const kind = state !== "waiting" && deliveries[state] > 0 ? `late ${state}` : null;
    const n = make("b", { class: kind }, count(deliveries[state]));
    return item(state, to(address("deliveries", { state }), state, " ", n));
  };
  return [
    ...["waiting", "settled", "abandoned", "cancelled"].map((state) =>
      figure(state, count(watches[state]), address("watches", { state }), standing(state))),
    make("div.figure.words", { "data-key": "statuses" }, make("p.label", "Settled as"),
      words.length === 0 ? make("p.none", "nothing yet") : make("ul", words.map(word))),
    figure("lag", span(lag * 1000), null, "lag", lag > LATE ? "late" : null),
    make("div.figure.words", { "data-key": "deliveries" }, make("p.label", "Deliveries"),
      make("ul", ["waiting", "held", "dead"].map(backlog))),
  ];
}

function figure(key, value, href, label, kind = null) {
  const inside = [make("b", { class: kind }, value), " ", make("span.label", label)];
  return make("div.figure", { "data-key": key }, href === null ? make("p", inside) : to(href, inside));
}

// ---- what needs attention

function alarmsOf({ now, accounts, hooks, deliveries }) {
  const alarms = [...accounts.map((account) => accountAlarm(account, millis(now))), ...hooks.map(hookAlarm)];
  if (deliveries.dead > 0) {
    const [its, them] = deliveries.dead === 1 ? ["its receiver works", "it"] : ["their receivers work", "them"];
    const what = several(deliveries.dead, "delivery was", "deliveries were");
    alarms.push(item("dead", to(address("deliveries", { state: "dead" }), `${what} given up on`),
      said(`; once ${its}, retry ${them} here or with \`assetwatch deliveries retry --dead\`.`)));
  }
  return alarms.filter((alarm) => alarm !== null);
}

/** Where an account is not polled at all, or not yet, its watches are late for that reason and for no other. */
function accountAlarm({ name, configured, standing: sentence, closure, held_until: held, oldest_due_at: due }, now) {
  const alarm = (...what) => item(`account ${name}`, "Account ", shown(name), ": ", what, ".");
  if (!configured) {
    return alarm("the configuration does not name it, so nothing polls its watches. Add ",
      make("code", shown(`[accounts.${name}]`)), " and have the daemon reload");
  }
  if (closure !== null) return alarm(said(sentence ?? closure));
  if (millis(held) > now || !(now - millis(due) > LATE * 1000)) return null;
  return alarm(`the watch that has waited longest was due ${span(now - millis(due))} ago. If that grows, its rate `,
    "is too low for what is watched");
}

function hookAlarm({ name, state, disabled_reason: reason, failures, last_error: error }) {
  if (state === "disabled") {
    return item(`hook ${name}`, "Hook ", shown(name), " is disabled (", shown(reason ?? "no reason was given"), "). ",
      make("code", shown(`assetwatch hooks enable ${name}`)), " releases what is held for it.");
  }
  return state !== "failing" || failures < 2 ? null : item(`hook ${name}`, "Hook ", shown(name),
    ` has failed ${count(failures)} times in a row: `, shown(error ?? "no reason is known"), ".");
}

// ---- charts

const NOTHING = "Nothing has settled in the last hour.";

function showPulse(minutes) {
  const most = Math.max(1, ...minutes.map(({ settled }) => settled));
  const sum = minutes.reduce((total, { settled }) => total + settled, 0);
  const top = minutes.find(({ settled }) => settled === most);
  const summary = sum === 0 ? NOTHING : `${count(sum)} settled in the last hour, at most ${count(most)} in a minute, `
    + `at ${MINUTE.format(millis(top.minute))}.`;
  fill(byId("pulse").querySelector(".body"), make("figure",
    make("div.chart", make("span.most", count(most)), pulse(minutes, most, summary)),
    make("p.scale", { "aria-hidden": "true" }, ["1 h ago", "30 min", "now"].map((text) => make("span", text))),
    make("figcaption", summary)));
  const rows = minutes.filter(({ settled }) => settled > 0).reverse().map(({ minute, settled }) =>
    make("tr", { "data-key": minute },
      make("th", { scope: "row" }, MINUTE.format(millis(minute))), make("td.n", count(settled))));
  const caption = "Settled per minute, without the minutes in which nothing did";
  fill(byId("pulse").querySelector(".table"),
    rows.length === 0 ? make("p.none", NOTHING) : table(caption, [["Minute", null], ["Settled", "n"]], rows));
}

function pulse(minutes, most, summary) {
  const viewBox = `0 0 ${Math.max(minutes.length, 1)} 100`;
  return draw("svg", { viewBox, preserveAspectRatio: "none", role: "img", "aria-label": summary },
    [15, 30, 45].map((x) => draw("line", { x1: x, x2: x, y1: 0, y2: 100 })),
    minutes.map(({ settled }, at) => {
      const height = (100 * settled) / most;
      const kind = at === minutes.length - 1 ? "current" : null;
      return draw("rect", { x: at + 0.12, width: 0.76, y: 100 - height, height, class: kind });
    }));
}

function waits(types) {
  if (types.length === 0) return make("p.none", NOTHING);
  const longest = Math.max(...types.map(({ longest_seconds: seconds }) => seconds), 0.001);
  const bar = (mean, most) => draw("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("line", { x1: 0, x2: (100 * most) / longest, y1: 5, y2: 5 }),
    draw("rect", { x: 0, y: 1, width: (100 * mean) / longest, height: 8 }));
  const row = ({ type, settled, mean_seconds: mean, longest_seconds: most }) => make("tr", { "data-key": type },
    make("th", { scope: "row" }, shown(type)),
    make("td.bar", bar(mean, most)),
    make("td.n", brief(mean)),
    make("td.n", brief(most)),
    make("td.n", count(settled)));
  const drawn = make("span.unseen", "Drawn: the bar is the mean, the line the longest");
  const columns = [["Type", null], [drawn, "bar"], ["mean", "n"], ["longest", "n"], ["assets", "n"]];
  return table("Time until settled by type of asset", columns, types.map(row));
}

// ---- hooks and accounts

/** Pairs of a word and what there is to say, without those of which there is nothing. */
function facts(pairs) {
  const said = pairs.filter(([, value]) => value !== null && value !== undefined && value !== false && value !== "");
  return make("dl", said.map(([name, value]) =>
    make("div", { "data-key": name }, make("dt", name), make("dd", value))));
}

/** The name of something, where it leads, and how it stands. */
const entry = (name, href, mark) => make("div.entry", make("h3", to(href, shown(name))), mark);

const future = (instant) => millis(instant) > clock.now() && when(instant);

function hook(hook) {
  const backlog = ["waiting", "held", "dead"].filter((state) => hook[state] > 0).map((state) =>
    item(state, to(address("deliveries", { state, hook: hook.name }), `${count(hook[state])} ${state}`)));
  return item(hook.name,
    entry(hook.name, address("deliveries", { hook: hook.name }), standing(hook.state)),
    make("p.target", shown(hook.target)),
    facts([
      ["backlog", backlog.length > 0 ? make("ul.row", backlog) : "none"],
      ["oldest", hook.oldest_waiting_at && when(hook.oldest_waiting_at)],
      ["delivered", hook.last_success_at && when(hook.last_success_at)],
      ["failed", hook.failures > 0 && [`${count(hook.failures)} in a row, first `, when(hook.failing_since)]],
      ["tried again", future(hook.next_probe_at)],
      ["left alone until", future(hook.held_until)],
      ["disabled", hook.disabled_at && [when(hook.disabled_at), ": ", shown(hook.disabled_reason ?? "")]],
      ["last error", hook.last_error && shown(hook.last_error)],
    ]));
}

function account(account) {
  const { name, configured, standing: sentence, closure } = account;
  const [kind, word] = !configured ? ["disabled", "not configured"] : closure !== null ? ["failing", closure]
    : sentence !== null ? ["held", "slowed"] : ["ok", "ok"];
  return item(name,
    entry(name, address("watches", { account: name }), standing(kind, word)),
    sentence !== null && make("p", said(sentence), "."),
    facts([
      ["pace", pace(account)],
      ["in flight", account.in_flight !== null && count(account.in_flight)],
      ["closed", account.closed_at && when(account.closed_at)],
      ["tried again", account.next_probe_at && when(account.next_probe_at, "now")],
      ["left alone until", future(account.held_until)],
      ["last error", closure !== null && account.last_error && shown(account.last_error)],
    ]));
}

/** How fast it is polled at the moment, of what it may be. */
function pace({ configured_rate: most, rate, allowed_rate: allowed }) {
  const now = allowed ?? rate ?? most;
  if (now === null) return null;
  const box = { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" };
  const bar = most !== null && draw("svg.pace", box,
    draw("rect.most", { width: 100, height: 10 }),
    draw("rect", { width: Math.min(100, (100 * now) / most), height: 10 }));
  return [bar, ` ${rounded(now)} requests/s`, most !== null && now < most ? ` of ${rounded(most)}` : ""];
}

const rounded = (rate) => count(Number(rate.toPrecision(3)));
