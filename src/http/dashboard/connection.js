// The way to the daemon: its token, single requests, and the stream that tells what has changed.

const TOKEN = "assetwatch token";
/** Heartbeats come every 15 s: a stream that is silent for so long has been lost, whatever TCP says. */
const SILENCE = 40_000;
/** Between two tries, in milliseconds; the last one repeats. */
const GAPS = [1_000, 2_000, 4_000, 8_000, 15_000, 30_000];

/** What the daemon refused, in its own sentence. */
class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

/** The daemon could not be asked at all. */
class Unreachable extends Error {}

let asking = null;

/** Asks for the token, once for all requests that want it. `used` is the one that was refused. */
function askForToken(used) {
  const stored = sessionStorage.getItem(TOKEN);
  if (stored !== used && stored !== null) return Promise.resolve();
  asking ??= new Promise((resolve) => {
    const [dialog, field] = [byId("token"), byId("token-value")];
    fill(byId("token-text"), said(used === null
      ? "It is in the file that `http.token_file` names in the daemon's configuration. It stays in this tab until that is closed."
      : "It does not accept the one that you gave. The right one is in the file that `http.token_file` names."));
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      // The daemon reads its file without the spaces around the token, too: none begins or ends with one.
      const given = field.value.trim();
      if (given === "") return dialog.showModal();
      sessionStorage.setItem(TOKEN, given);
      field.value = "";
      byId("forget").hidden = false;
      asking = null;
      resolve();
    };
    dialog.showModal();
    field.focus();
  });
  return asking;
}

async function request(method, path, accept, signal) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { accept };
    if (token !== null) headers.authorization = `Bearer ${encodeToken(token)}`;
    let answer;
    try {
      answer = await fetch(path, { method, headers, signal, cache: "no-store" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Unreachable("The daemon does not answer. If it was stopped, start it with `assetwatch run`; "
        + "if it is reached through ssh, see that the tunnel still stands.");
    }
    if (answer.status !== 401) return answer;
    await askForToken(token);
  }
}

/** A number that JavaScript cannot hold, by its digits: as text, and as JSON, it is what was sent. */
class Digits {
  constructor(digits) {
    this.digits = digits;
  }

  toString() {
    return this.digits;
  }

  toJSON() {
    return JSON.rawJSON(this.digits);
  }
}

/** JSON, in which nothing is rounded that is too large for JavaScript: it is shown as the API or a caller wrote it. */
const read = (text) => JSON.parse(text, (_key, value, context) =>
  (typeof value === "number" && Math.abs(value) > Number.MAX_SAFE_INTEGER && context?.source && JSON.rawJSON
    ? new Digits(context.source) : value));

/** A header holds only printable ASCII, which a token is made of; another one is wrong anyway, and it is the daemon that
 *  is to say so. */
const encodeToken = (token) => token.replace(/[^\x20-\x7e]/g, "?");

/** One request, and its JSON. */
async function call(method, path, signal) {
  const answer = await request(method, path, "application/json", signal);
  const body = await answer.text().then(read).catch(() => null);
  if (answer.ok && body !== null) return body;
  throw new Refused(answer.status, body?.detail ?? body?.title
    ?? `The daemon answered with ${answer.status}, which this page does not understand. Its log says more.`);
}

/** The events of a stream, until it ends. */
async function* events(path, signal) {
  const answer = await request("GET", path, "text/event-stream", signal);
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw new Refused(answer.status, body?.detail ?? `The daemon answered with ${answer.status}.`);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await soon(reader.read());
    if (done) return;
    const blocks = (rest + value).split(/\r\n\r\n|\n\n|\r\r/);
    rest = blocks.pop();
    yield* blocks.map(parsed).filter((event) => event.data !== "");
  }
}

function parsed(block) {
  const event = { type: "message", data: "" };
  for (const line of block.split(/\r\n|\n|\r/)) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "event") event.type = value;
    if (field === "data") event.data += event.data === "" ? value : `\n${value}`;
  }
  return event;
}

function soon(promise) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Unreachable("The daemon has been silent for too long.")), SILENCE);
  });
  return Promise.race([promise, silence]).finally(() => clearTimeout(timer));
}

/** Follows a stream for ever: again after a loss, and not at all while nobody looks at the page. */
class Live {
  constructor(path, took, changed) {
    Object.assign(this, { path, took, changed, stream: null, nudge: () => {} });
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stream?.abort() : this.nudge()));
    addEventListener("online", () => this.nudge());
  }

  async run() {
    for (let failures = 0; ;) {
      if (document.hidden) {
        await this.nudged();
        continue;
      }
      this.stream = new AbortController();
      let why = "The daemon has ended the connection.";
      try {
        for await (const event of events(this.path, this.stream.signal)) {
          failures = 0;
          this.changed({ up: true });
          this.took(event);
        }
      } catch (error) {
        if (this.stream.signal.aborted) continue;
        why = error.message;
      } finally {
        this.stream.abort();
      }
      const gap = GAPS[Math.min(failures++, GAPS.length - 1)] * (0.8 + 0.4 * Math.random());
      this.changed({ up: false, why, next: Date.now() + gap });
      await this.nudged(gap);
    }
  }

  /** After so long, or when there is a reason to believe that it works now. */
  nudged(ms) {
    return new Promise((resolve) => {
      const timer = ms === undefined ? null : setTimeout(resolve, ms);
      this.nudge = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
