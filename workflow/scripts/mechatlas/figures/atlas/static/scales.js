// Colours and numbers. Scales can be told apart with any kind of colour vision: viridis, red to blue, Okabe and Ito.

const VIRIDIS = ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"];
const RED_BLUE = ["#67001f", "#b2182b", "#d6604d", "#f4a582", "#fddbc7", "#f7f7f7", "#d1e5f0", "#92c5de", "#4393c3", "#2166ac", "#053061"];
const CLASS_COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#d55e00", "#7f7f7f", "#2f4b7c", "#b5651d"];
// What heads are called mostly has the same colour in every model.
const KNOWN_COLOURS = { "previous token": "#0072b2", induction: "#e69f00", "duplicate token": "#d55e00", delimiter: "#009e73", itself: "#cc79a7", "near tokens": "#56b4e9", start: "#f0e442", bracket: "#2f4b7c", "same class": "#b5651d", "rests on BOS": "#8d99a6" };
const NOTHING = "#c9ced4";
const KIND_COLOURS = { q: "#0072b2", k: "#e69f00", v: "#009e73", mlp: "#7f7f7f", logits: "#cc79a7" };
const WORDS_COLOUR = "#0072b2", CONTROL_COLOUR = "#e69f00";

const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

// A colour between those of a list, for a share from 0 to 1.
function between(colours, share) {
  const place = Math.min(1, Math.max(0, share)) * (colours.length - 1);
  const low = Math.min(Math.floor(place), colours.length - 2);
  const [a, b] = [channels(colours[low]), channels(colours[low + 1])];
  return `#${a.map((x, i) => Math.round(x + (b[i] - x) * (place - low)).toString(16).padStart(2, "0")).join("")}`;
}

// Black or white, whichever is read better on a colour (relative luminance of WCAG).
function inkOn(hex) {
  const [r, g, b] = channels(hex).map((x) => {
    const share = x / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

const missing = (value) => value === null || value === undefined || Number.isNaN(value);

function fixed(value, digits = 2) {
  if (missing(value)) return "–";
  const text = Number(value).toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

const percent = (value, digits = 0) => (missing(value) ? "–" : `${fixed(100 * value, digits)} %`);

// "0.81 [0.78, 0.84]" of [value, low, high].
function interval(entry, digits = 2, unit = "") {
  if (!entry || missing(entry[0])) return "–";
  const end = missing(entry[1]) ? "" : ` [${fixed(entry[1], digits)}, ${fixed(entry[2], digits)}]`;
  return `${fixed(entry[0], digits)}${unit}${end}`;
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const chance = (p) => (missing(p) ? "–" : p < 0.001 ? "< 0.001" : fixed(p, 3));
// A control beside its p: "0.43 (0.247)".
const against = (value, p, digits = 2) => (missing(value) ? "–" : `${fixed(value, digits)} (${chance(p)})`);
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
