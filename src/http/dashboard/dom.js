// Elements, and how what is on the page becomes what it should be. Nothing here or after it reads a string as markup:
// whatever comes from the API, from callers or from hooks becomes a text node.

const SVG = "http://www.w3.org/2000/svg";

/** An element: its name with its classes (`p.quiet`), its attributes if it has some, its children. Attributes that are
 *  null, undefined or false are absent, and so are such children; strings among the children become text. */
function make(name, ...rest) {
  return fitted(document.createElement(name.split(".")[0]), name, rest);
}

/** A link within the page. */
const to = (href, ...children) => make("a", { href }, children);

/** An item of a list, by which it is known when the list changes. */
const item = (key, ...children) => make("li", { "data-key": key }, children);

/** The same for a drawing. */
function draw(name, ...rest) {
  return fitted(document.createElementNS(SVG, name.split(".")[0]), name, rest);
}

function fitted(element, name, rest) {
  const given = (value) => value !== null && value !== undefined && value !== false;
  const attributes = Object.getPrototypeOf(rest[0] ?? "") === Object.prototype ? rest.shift() : {};
  const classes = name.split(".").slice(1).join(" ");
  if (classes !== "") element.setAttribute("class", classes);
  for (const [key, value] of Object.entries(attributes).filter(([, value]) => given(value))) {
    element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...rest.flat(Infinity).filter(given));
  return element;
}

// What is invisible, or changes the direction or the order of its neighbours.
const ODD = /([\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Default_Ignorable_Code_Point}])/u;

/** Foreign text, isolated from the text around it, with the characters shown that would not be seen. */
function shown(text, inLines = false) {
  const parts = String(text).split(ODD).filter((part) => part !== "");
  return make("bdi.text", parts.map((part) => {
    if (!ODD.test(part) || (inLines && (part === "\n" || part === "\t"))) return part;
    const code = part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return make("span.odd", `U+${code}`);
  }));
}

/** A sentence that may have words of others in it; what it has between backticks is a command, or a line to write. */
function said(sentence) {
  const parts = String(sentence).split(/`([^`]+)`/);
  return parts.map((part, at) => (part === "" ? null : at % 2 === 1 ? make("code", shown(part)) : shown(part)));
}

/** Foreign text of several lines. It can have the focus, because it may have to be scrolled. */
function lines(text, label) {
  return make("pre", { tabindex: 0, role: "group", "aria-label": label }, shown(text, true));
}

/** A foreign URL: a link where it leads to a web page, else only its text. */
function link(text) {
  let url;
  try {
    url = new URL(text);
  } catch {
    return shown(text);
  }
  const plain = (url.protocol === "https:" || url.protocol === "http:") && !url.username && !url.password;
  if (!plain) return shown(text);
  return make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, shown(text));
}

const MARKS = {
  waiting: "○", settled: "●", abandoned: "▲", cancelled: "✕",
  delivered: "●", dead: "▲", held: "‖",
  ok: "●", failing: "▲", disabled: "✕", unused: "○",
};

/** A word for how something stands, with a mark, so that the colour says nothing alone. */
function standing(kind, word = kind) {
  return make("span", { class: `standing is-${kind}` },
    make("span.mark", { "aria-hidden": "true" }, MARKS[kind] ?? "·"), shown(word));
}

/** A table with a caption for those who do not see it. A column is [heading, class]; one without a heading is no header. */
function table(caption, columns, rows) {
  const head = columns.map(([heading, kind]) =>
    (heading === "" ? make("td", { class: kind }) : make("th", { scope: "col", class: kind }, heading)));
  return make("table",
    make("caption.unseen", caption),
    make("thead", make("tr", head)),
    make("tbody", rows));
}

/** Makes the children of `parent` these, and keeps those that are there already: with the focus, the selection, the
 *  place to which it is scrolled and what was opened. */
function fill(parent, ...children) {
  const focused = document.activeElement;
  const inside = focused !== parent && parent.contains(focused);
  adopt(parent, children.flat(Infinity).filter(Boolean)
    .map((child) => (child instanceof Node ? child : document.createTextNode(child))));
  if (!inside || document.activeElement === focused) return;
  // It was moved, or is gone: then the reader goes on at the heading, and not at the top of the page.
  const next = focused.isConnected ? focused : parent.closest(".view")?.querySelector("h1");
  next?.focus({ preventScroll: true });
}

/** Has it read out, even where it is what was said last: a screen reader speaks only of what has changed. */
function announce(place, text) {
  fill(place);
  requestAnimationFrame(() => fill(place, said(text)));
}

const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null);

function adopt(parent, wanted) {
  const keys = new Set(wanted.map(keyOf).filter((key) => key !== null));
  const known = new Map();
  for (const child of [...parent.childNodes]) {
    const key = keyOf(child);
    if (key === null) continue;
    if (keys.has(key)) known.set(key, child);
    else child.remove();
  }
  let at = parent.firstChild;
  for (const fresh of wanted) {
    const key = keyOf(fresh);
    const old = key === null ? at : known.get(key);
    if (!old || old.nodeName !== fresh.nodeName || keyOf(old) !== key) {
      parent.insertBefore(fresh, at);
      continue;
    }
    if (old === at) at = at.nextSibling;
    else parent.insertBefore(old, at);
    become(old, fresh);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function become(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // What the reader has opened stays open.
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  adopt(old, [...fresh.childNodes]);
}

const byId = (id) => document.getElementById(id);
