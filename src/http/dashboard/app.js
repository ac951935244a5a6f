// Where the parts meet: which view is shown, what a push of the daemon refreshes, what keys and buttons do.

const views = {
  watches: new List("watches", WATCH_COLUMNS, watchRow, "Nothing is watched yet. `assetwatch add ID` starts to."),
  deliveries: new List("deliveries", DELIVERY_COLUMNS, deliveryRow, "Nobody was told of anything yet."),
  watch: new WatchView(),
};

const live = {
  /** What the daemon said of everything last, and when it said anything. */
  overview: null, at: null,
  /** The view, where the reader was in each, and what gets the focus in the next one. */
  route: null, places: new Map(), focus: null,
  /** What is being loaded, and whether it has to be once more. */
  request: null, running: null, pending: false,
  /** When it may be loaded again without being asked for, and what waits for that. */
  rested: 0, timer: null,
  /** When the stream is tried again; none while it is there. */
  next: null,
};

// ---- saying things

function say(text) {
  announce(byId("said"), text);
  announce(byId("warned"), "");
  byId("hush").hidden = text === "";
}

function warn(text) {
  announce(byId("said"), "");
  announce(byId("warned"), text);
  byId("hush").hidden = false;
}

function ask(title, text, yes, no) {
  const dialog = byId("ask");
  fill(byId("ask-title"), title);
  fill(byId("ask-text"), text);
  byId("ask-yes").textContent = yes;
  byId("ask-no").textContent = no;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => { dialog.onclose = () => resolve(dialog.returnValue === "yes"); });
}

// ---- where we are

function routeOf(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [name, ...rest] = path.split("/");
  const known = Object.hasOwn(views, name) ? name : "watches";
  let asset = "";
  try {
    asset = decodeURIComponent(rest.join("/"));
  } catch {
    asset = rest.join("/");
  }
  return { name: known, path: asset, query: new URLSearchParams(query), hash };
}

function navigate() {
  const [before, route] = [live.route, routeOf(location.hash)];
  const moved = before !== null && (before.name !== route.name || before.path !== route.path);
  if (before !== null) {
    const focus = document.activeElement?.closest?.("[data-key]")?.dataset.key;
    live.places.set(before.hash, { y: scrollY, focus });
  }
  if (route.name !== "watch") byId("back").href = route.hash || "#/watches";
  byId("back").textContent = byId("back").hash.startsWith("#/deliveries") ? "← Deliveries" : "← Watches";
  live.route = route;
  for (const [name, { section }] of Object.entries(views)) section.hidden = name !== route.name;
  for (const anchor of document.querySelectorAll("[data-view]")) {
    if (anchor.dataset.view === route.name) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  const title = { watches: "Watches", deliveries: "Deliveries", watch: route.path }[route.name];
  document.title = `${title} · assetwatch`;
  document.body.dataset.route = route.name;
  views[route.name].enter(route);
  live.request?.abort();
  refresh().then(() => moved && arrive(route));
}

/** Someone who comes to another view begins at its heading, or where they left it. */
function arrive(route) {
  if (live.route !== route || document.querySelector("dialog[open]")) return;
  const place = live.places.get(route.hash);
  const section = views[route.name].section;
  const row = place?.focus && section.querySelector(`[data-key="${CSS.escape(place.focus)}"] a`);
  const target = live.focus ?? row ?? section.querySelector("h1");
  live.focus = null;
  target.focus({ preventScroll: true });
  scrollTo(0, place?.y ?? 0);
}

// ---- refreshing

/** Loads what the view shows because something has changed: not more than a fifth of the time, so that a search which
 *  costs the daemon much is not repeated all the time. */
function refreshInTime() {
  live.timer ??= setTimeout(() => {
    live.timer = null;
    // Who comes back is told how everything stands, and that refreshes.
    if (!document.hidden) refresh();
  }, Math.max(0, live.rested - performance.now()));
}

/** Loads what the view shows. However often it is called meanwhile, one request is under way, and one more follows. */
async function refresh() {
  live.pending = true;
  if (live.running) return live.running;
  live.running = (async () => {
    while (live.pending) {
      live.pending = false;
      await load(live.route);
    }
  })().finally(() => { live.running = null; });
  return live.running;
}

async function load(route) {
  const view = views[route.name];
  const begun = performance.now();
  live.request = new AbortController();
  try {
    const found = await view.load(route, live.request.signal);
    if (live.route !== route) return;
    view.show(route, found);
    live.at = Date.now();
    problem(view, null);
  } catch (error) {
    if (live.route === route && !live.request.signal.aborted) problem(view, error);
  }
  live.rested = performance.now() + 4 * (performance.now() - begun);
}

function problem(view, error) {
  const rows = view.section.querySelector(".rows");
  const old = view.section.querySelector(".problem");
  if (error === null) return old?.remove();
  // While the stream is lost, that is what is said.
  if (error instanceof Unreachable && document.body.classList.contains("stale")) return undefined;
  if (!(error instanceof Refused || error instanceof Unreachable)) console.error(error);
  if (error.status === 404) fill(rows);
  const place = old ?? make("div.problem.warning", { role: "alert" });
  fill(place, make("p", said(error.message)), make("p", button("reload", "Try again", {})));
  if (!old) rows.before(place);
  return undefined;
}

function took({ type, data }) {
  if (type !== "overview") return;
  const overview = JSON.parse(data);
  clock.skew = millis(overview.now) - Date.now();
  live.overview = overview;
  showOverview(overview);
  live.at = Date.now();
  refreshInTime();
}

function linked({ up, why, next }) {
  const stale = document.body.classList.toggle("stale", !up);
  document.body.classList.toggle("live", up);
  live.next = up ? null : next;
  byId("link-state").textContent = up ? "live" : "not connected";
  byId("lost").hidden = up;
  const sentence = !stale ? "" : `${why} ${live.at === null ? "Nothing could be read yet."
    : `What is shown is as it was at ${moment(live.at + clock.skew)}.`} It is tried again by itself.`;
  // Said once, however often it is tried.
  fill(byId("lost-said"), said(sentence));
  countdown();
}

function countdown() {
  if (live.next === null) return;
  const left = Math.ceil((live.next - Date.now()) / 1000);
  byId("lost-next").textContent = left > 0 ? `Next try in ${left} s.` : "Trying …";
}

// ---- doing things

const actions = {
  skip: () => byId("main").focus(),
  hush: () => say(""),
  reload: () => refresh(),
  reconnect: () => stream.nudge(),
  clear: () => views[live.route.name].clear(),
  forget: () => {
    sessionStorage.removeItem(TOKEN);
    location.reload();
  },

  async poll({ asset, watch }) {
    await call("POST", `/v1/watches/${encodeURIComponent(asset)}/poll?watch=${watch}`);
    say("It is due now, and is polled as soon as the account's pace allows.");
  },

  async cancel({ asset, watch }) {
    const text = ["It is not polled any more, and hooks that want to hear of it are told. This cannot be taken back; ",
      make("code", "assetwatch add --again"), " watches the asset anew."];
    if (!await ask(["Stop watching ", shown(asset), "?"], text, "Cancel the watch", "Keep watching")) return;
    await call("DELETE", `/v1/watches/${encodeURIComponent(asset)}?watch=${watch}`);
    say("The watch is cancelled.");
  },

  async retry({ delivery, state }) {
    const text = "Its receiver has the event already. It gets it again, under the same webhook-id; a command is run again.";
    if (state === "delivered" && !await ask(`Retry delivery ${delivery}?`, text, "Retry", "Leave it")) return;
    const { result, hook } = await call("POST", `/v1/deliveries/${delivery}/retry`);
    const held = `stays held, since the hook is disabled; \`assetwatch hooks enable ${hook}\` releases it.`;
    say(`Delivery ${delivery} to ${hook} ${result === "held" ? held : "is due now."}`);
  },
};

const under = new Set();

async function act(button) {
  const { action, ...data } = button.dataset;
  const what = JSON.stringify([action, data]);
  if (under.has(what)) return;
  under.add(what);
  try {
    await actions[action](data);
  } catch (error) {
    warn(error.message);
  } finally {
    under.delete(what);
  }
  if (["poll", "cancel", "retry"].includes(action)) refresh();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-action]");
  if (button) act(button);
});

// ---- keys

/** A key that is a character is pressed by accident where somebody dictates: it can be turned off. */
const KEYS = "assetwatch keys";
const slash = byId("slash");

function useSlash(on) {
  slash.checked = on;
  const { search } = views.watches.form.elements;
  if (on) search.setAttribute("aria-keyshortcuts", "/");
  else search.removeAttribute("aria-keyshortcuts");
}

slash.addEventListener("change", () => {
  if (slash.checked) localStorage.removeItem(KEYS);
  else localStorage.setItem(KEYS, "off");
  useSlash(slash.checked);
});

const isField = (element) => element.matches?.("input, select, textarea");

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const element = event.target;
  const search = views.watches.form.elements.search;
  if (event.key === "/" && slash.checked && !isField(element)) {
    event.preventDefault();
    if (live.route.name === "watches") return search.focus();
    live.focus = search;
    location.hash = "#/watches";
  } else if (event.key === "Escape" && element === search && search.value !== "") {
    event.preventDefault();
    search.value = "";
    views.watches.filtered();
  } else if (event.key === "Escape" && isField(element)) {
    element.blur();
  } else if (event.key === "Escape" && live.route.name === "watch") {
    location.hash = byId("back").hash;
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    along(element, event);
  }
  return undefined;
}

function along(element, event) {
  const rows = [...document.querySelectorAll(".view:not([hidden]) tbody tr")];
  const at = rows.indexOf(element.closest?.("tbody tr"));
  const first = at < 0 && (element === views.watches.form.elements.search || element.matches?.("h1"));
  if (at < 0 && !first) return;
  const next = rows[at + (event.key === "ArrowDown" ? 1 : -1)]?.querySelector("a, button");
  if (!next) return;
  event.preventDefault();
  next.focus();
}

document.addEventListener("keydown", onKey);

// ---- the beginning

history.scrollRestoration = "manual";
byId("forget").hidden = sessionStorage.getItem(TOKEN) === null;
useSlash(localStorage.getItem(KEYS) !== "off");
addEventListener("hashchange", navigate);
setInterval(() => {
  if (document.hidden) return;
  tick();
  countdown();
}, 1000);
const stream = new Live("/v1/overview/stream", took, linked);
navigate();
stream.run();
