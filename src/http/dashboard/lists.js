// The two lists, of watches and of deliveries. What they are filtered by is in the page's address.

const PAGE = 50;

/** The word that matters: the API's own once it is settled, else ours. */
function word(watch) {
  if (watch.state === "settled") return watch.status ?? "settled";
  if (watch.state === "waiting") return watch.status ?? "waiting";
  return watch.state === "abandoned" && watch.reason ? `abandoned: ${watch.reason}` : watch.state;
}

const standingOf = (watch) => standing(watch.state, word(watch));

/** Whether it is due, or someone has it in hand. */
function nextPoll(watch) {
  if (watch.state !== "waiting") return when(watch.settled_at);
  if (millis(watch.lease_until) > clock.now()) return "under way";
  return when(watch.due_at, "due");
}

function watchRow(watch) {
  const end = watch.settled_at ? millis(watch.settled_at) : clock.now();
  return make("tr", { "data-key": watch.id },
    make("th", { scope: "row", class: "id" },
      make("a", { href: watchAddress(watch) }, shown(watch.asset_id)),
      watch.state === "waiting" && watch.last_error && make("p.error", shown(watch.last_error))),
    make("td", standingOf(watch)),
    make("td.n", nextPoll(watch)),
    make("td.n.third", coarse(end - millis(watch.created_at))),
    make("td.n.third", count(watch.polls)),
    make("td.third", watch.type && shown(watch.type)),
    make("td.second", shown(watch.account)),
    make("td.second", watch.batch && shown(watch.batch)));
}

const WATCH_COLUMNS = [["Asset", "id"], ["Stands", null], ["Next poll, or end", "n"], ["Took", "n third"],
  ["Polls", "n third"], ["Type", "third"], ["Account", "second"], ["Batch", "second"]];

/** A button for a verb; what it is done to is in its data. */
function button(verb, label, data, kind = null) {
  const what = Object.entries(data).map(([name, value]) => [`data-${name}`, value]);
  const key = [verb, ...Object.values(data)].join(" ");
  const attributes = { type: "button", class: kind, "data-action": verb, "data-key": key, ...Object.fromEntries(what) };
  return make("button", attributes, label);
}

function retryButton({ id, state, due_at: due }) {
  if (state === "waiting" && millis(due) <= clock.now()) return null;
  const label = [state === "waiting" ? "Try now" : "Retry", make("span.unseen", ` delivery ${id}`)];
  return button("retry", label, { delivery: id, state });
}

function deliveryWhen(delivery) {
  if (delivery.finished_at) return when(delivery.finished_at);
  if (millis(delivery.lease_until) > clock.now()) return "under way";
  return when(delivery.due_at, "due");
}

function deliveryRow(delivery) {
  const watch = { asset_id: delivery.asset_id, id: delivery.watch_id };
  return make("tr", { "data-key": delivery.id },
    make("th.n", { scope: "row" }, String(delivery.id)),
    make("td.id",
      watch.asset_id === null ? make("span.none", "no asset") : to(watchAddress(watch), shown(watch.asset_id)),
      make("p.quiet", shown(delivery.type ?? "")),
      delivery.last_error && make("p.error", shown(delivery.last_error))),
    make("td", standing(delivery.state)),
    make("td.id.second", shown(delivery.hook)),
    make("td.n.third", count(delivery.attempts)),
    make("td.n.third", deliveryWhen(delivery)),
    make("td.act", delivery.state !== "delivered" && retryButton(delivery)));
}

const DELIVERY_COLUMNS = [["No.", "n"], ["Asset and event", "id"], ["Stands", null], ["Hook", "id second"],
  ["Attempts", "n third"], ["When", "n third"], ["", "act"]];

/** A list that is filled from `/v1/…`, a page at a time. */
class List {
  constructor(name, columns, row, empty) {
    Object.assign(this, { name, columns, row, empty, section: byId(name), form: byId(name).querySelector("form") });
    /** Which page came before which, as far as the reader has come. */
    this.before = new Map();
    /** Whether it was said what the filters found: once for each change of them, not for each change of the list. */
    this.said = true;
    this.form.addEventListener("submit", (event) => event.preventDefault());
    let typing;
    this.form.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.filtered(), 200);
    });
  }

  /** The form says what the address says, but for the field in which somebody writes. */
  enter({ query }) {
    for (const field of this.form.querySelectorAll("input, select")) {
      const value = query.get(field.name) ?? "";
      if (field !== document.activeElement && field.value !== value) field.value = value;
    }
    this.form.querySelector("[data-action=clear]").hidden = ![...query.keys()].some((name) => name !== "cursor");
  }

  filtered() {
    const query = Object.fromEntries(new FormData(this.form));
    this.said = false;
    history.replaceState(null, "", address(this.name, query));
    dispatchEvent(new HashChangeEvent("hashchange"));
  }

  clear() {
    this.form.querySelectorAll("input, select").forEach((field) => { field.value = ""; });
    this.filtered();
  }

  async load({ query }, signal) {
    const asked = new URLSearchParams([...query].filter(([, value]) => value !== ""));
    asked.set("limit", PAGE);
    return await call("GET", `/v1/${this.name}?${asked}`, signal);
  }

  show({ query }, page) {
    const rows = page[this.name];
    const filtered = [...query.keys()].some((name) => name !== "cursor");
    const empty = filtered ? "Nothing fits these filters." : this.empty;
    fill(this.section.querySelector(".rows"),
      rows.length === 0 ? make("p.none.empty", said(empty))
        : table(`${this.name}, newest first`, this.columns, rows.map(this.row)),
      this.pages(query, page.next_cursor));
    if (this.said) return;
    this.said = true;
    const found = `${count(rows.length)}${page.next_cursor === null ? "" : " or more"}`;
    announce(this.section.querySelector("[role=status]"), `${found} of the ${this.name} fit these filters.`);
  }

  pages(query, next) {
    const cursor = query.get("cursor");
    const page = (key, label, value) => make("a",
      { href: address(this.name, { ...Object.fromEntries(query), cursor: value }), "data-key": key }, label);
    if (next !== null) this.before.set(next, cursor);
    const newer = cursor !== null && this.before.get(cursor);
    return make("nav.pages", { "aria-label": "Pages", hidden: cursor === null && next === null },
      cursor !== null && page("newest", "Newest", null),
      newer && page("newer", "Newer", newer),
      next !== null && page("older", "Older", next));
  }
}
