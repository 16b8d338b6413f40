// What everything else stands on: elements made of text nodes only, data files, addresses, the pages by name.

const ATLAS = (window.ATLAS = { data: new Map(), waiting: new Map() });

// Data files call this; a page on disk may load scripts where it may not fetch JSON.
ATLAS.put = (name, value) => {
  ATLAS.data.set(name, value);
  const waits = ATLAS.waiting.get(name);
  if (waits) waits.resolve(value);
};

const CATALOGUE = JSON.parse(document.getElementById("catalogue").textContent);
const main = document.getElementById("main");
// Page name -> function of (parts of the address, its settings) that returns elements or a promise of them.
const pages = {};

// An element; children that are strings become text, never markup.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "style") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function script(address) {
  return new Promise((resolve, reject) => {
    const node = el("script", { src: address });
    node.addEventListener("load", resolve);
    node.addEventListener("error", () => reject(new Error(`${address} cannot be read; keep the folder of the atlas whole`)));
    document.head.append(node);
  });
}

// The data file of a name, loaded once.
function load(...parts) {
  const name = parts.join("/");
  if (ATLAS.data.has(name)) return Promise.resolve(ATLAS.data.get(name));
  if (ATLAS.waiting.has(name)) return ATLAS.waiting.get(name).promise;
  const waits = {};
  waits.promise = new Promise((resolve, reject) => Object.assign(waits, { resolve, reject }));
  ATLAS.waiting.set(name, waits);
  const address = `data/${name.split("/").map(encodeURIComponent).join("/")}.js`;
  script(address).then(() => {
    if (!ATLAS.data.has(name)) waits.reject(new Error(`${address} holds something else; make the atlas again`));
  }, waits.reject);
  return waits.promise;
}

const core = (model) => load(model, "core");

// --- addresses -------------------------------------------------------------------------------------------------------

function address(parts, settings = {}) {
  const query = new URLSearchParams(Object.entries(settings).filter(([, v]) => v !== null && v !== undefined && v !== ""));
  const text = query.toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

function here() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  let parts;
  try {
    parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    parts = [];
  }
  return { parts, settings: Object.fromEntries(new URLSearchParams(query)) };
}

// Change the settings of this page in its address without a step in the history.
function keep(settings) {
  const now = here();
  history.replaceState(null, "", address(now.parts, { ...now.settings, ...settings }));
}

const go = (...parts) => {
  location.hash = address(parts);
};

const headPlace = (name) => name.match(/^L(\d+)\.H(\d+)$/).slice(1).map(Number);
const headAddress = (model, name) => address([model, "head", headPlace(name).join(".")]);
const latentAddress = (model, source, dictionary, unit) => {
  const [, layer, latent] = unit.match(/^L(\d+)\..*?F(\d+)$/);
  return address([model, "latent", source, dictionary, `${layer}.${latent}`]);
};
const link = (href, ...children) => el("a", { href }, ...children);
const headLink = (model, name, ...children) => link(headAddress(model, name), ...(children.length ? children : [name]));

// Settings that hold for all pages, such as the source whose words are shown.
const chosen = {};
