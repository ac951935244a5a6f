// Instants and spans, in words. The daemon's clock counts: what `now` it sends tells how far ours is off.

const clock = { skew: 0, now: () => Date.now() + clock.skew };

const millis = (instant) => (instant ? Date.parse(instant) : NaN);

/** The time between two instants, in milliseconds, in words of about two digits. */
function span(ms) {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return pair(minutes, "min", Math.floor(seconds % 60), "s", minutes < 10);
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return pair(hours, "h", minutes % 60, "min", hours < 10);
  return pair(Math.floor(hours / 24), "d", hours % 24, "h", hours < 240);
}

const pair = (big, bigUnit, small, smallUnit, both) =>
  (both && small ? `${big} ${bigUnit} ${small} ${smallUnit}` : `${big} ${bigUnit}`);

/** The same in whole seconds, for what goes on counting. */
const coarse = (ms) => span(Math.floor(ms / 1000) * 1000).replace(".0", "");

/** Seconds in the fewest signs, for a column of a table. */
function brief(seconds) {
  if (seconds < 100) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  return seconds < 6_000 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3_600).toFixed(1)} h`;
}

/** In one unit, which is enough for what lies about so far away. */
function about(ms) {
  const [minutes, hours] = [Math.floor(ms / 60_000), Math.floor(ms / 3_600_000)];
  if (minutes < 1) return `${Math.floor(ms / 1000)} s`;
  if (hours < 1) return `${minutes} min`;
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} d`;
}

function ago(at, past) {
  const gone = clock.now() - at;
  if (gone >= 0 && past) return past;
  if (Math.abs(gone) < 1000) return "now";
  return gone > 0 ? `${about(gone)} ago` : `in ${about(-gone)}`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const MINUTE = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

/** The time of day, with the date where it is not today's. */
function moment(at) {
  const today = DAY.format(at) === DAY.format(clock.now());
  return today ? CLOCK.format(at) : `${DAY.format(at)}, ${CLOCK.format(at)}`;
}

/** `3 min ago`, which goes on counting; an en dash for what has not happened. What was to come is `past` once its time
 *  has come, until the daemon says what became of it. */
function when(instant, past = "") {
  const at = millis(instant);
  if (Number.isNaN(at)) return make("span.none", "–");
  return make("time", { datetime: instant, title: moment(at), "data-ago": past }, ago(at, past));
}

/** The time of day. */
function exactly(instant) {
  const at = millis(instant);
  return Number.isNaN(at) ? "–" : make("time", { datetime: instant, title: instant }, moment(at));
}

/** Lets all that counts go on. */
function tick() {
  for (const time of document.querySelectorAll("time[data-ago]")) {
    const text = ago(millis(time.dateTime), time.dataset.ago);
    if (time.textContent !== text) time.firstChild.data = text;
  }
}

const number = new Intl.NumberFormat("en-GB");
const count = (n) => number.format(n ?? 0);
const several = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;
