/**
 * Schedules as values: progress of a run → scale. The same as `rlg_sampler/schedules/schedule.py`, for the curve that follows
 * the widgets before anything runs; a test compares the two. No page, no ComfyUI.
 *
 * @typedef {[progress: number, scale: number]} Point
 * @typedef {object} Schedule
 * @property {"step" | "linear" | "cosine" | "power"} curve how the scale gets from one point to the next
 * @property {Point[]} points rising in progress, the first at 0
 * @property {number} power exponent of "power"; 1 for the others
 */

// Positions come as decimals (0.333) and progress as a quotient (1/3): equal ones must meet.
const TOLERANCE = 1e-6;
const SAMPLES = 64;

/** What each schedule node makes of its widgets. @type {Record<string, (widgets: Record<string, any>) => Schedule>} */
const NODES = {
  RLGScale: (w) => inRange(w.scale, w.start_percent, w.end_percent, w.outside),
  RLGCombinedGeneration: (w) => combinedGeneration(w.switch_percent, w.scale),
  RLGRamp: (w) => ramp(w.start_scale, w.end_scale, w.curve, w.power),
  RLGKeyframes: (w) => keyframes(w.keyframes, w.interpolation),
};

/** Ids of the nodes that make a schedule of their widgets. */
export const SCHEDULE_NODES = Object.keys(NODES);

/**
 * @param {string} nodeId
 * @param {Record<string, any>} widgets value by name
 * @returns {Schedule}
 * @throws {Error} the sentence with which the server would refuse them
 */
export function scheduleOf(nodeId, widgets) {
  return NODES[nodeId](widgets);
}

/**
 * The scale at a progress from 0 to 1.
 *
 * @param {Schedule} schedule
 * @param {number} progress
 */
export function scaleAt({ curve, points, power }, progress) {
  const index = points.findLastIndex(([position]) => position <= progress + TOLERANCE);
  const [start, scale] = points[index];
  if (curve === "step" || index + 1 === points.length) return scale;
  const [end, nextScale] = points[index + 1];
  let fraction = Math.min(Math.max((progress - start) / (end - start), 0), 1);
  if (curve === "cosine") fraction = (1 - Math.cos(Math.PI * fraction)) / 2;
  else if (curve === "power") fraction **= power;
  return scale + (nextScale - scale) * fraction;
}

/**
 * Corners of the line to draw, from progress 0 to 1.
 *
 * @param {Schedule} schedule
 * @returns {Point[]}
 */
export function outline(schedule) {
  const { curve, points } = schedule;
  if (curve === "linear") return points;
  if (curve === "step") {
    const ends = [...points.slice(1).map(([position]) => position), 1];
    return points.flatMap(([position, scale], i) => [[position, scale], [ends[i], scale]]);
  }
  return Array.from({ length: SAMPLES + 1 }, (_, i) => [i / SAMPLES, scaleAt(schedule, i / SAMPLES)]);
}

/**
 * In words, for those who do not see the curve.
 *
 * @param {Schedule} schedule
 */
export function describe({ curve, points, power }) {
  if (points.length === 1) return `scale ${short(points[0][1])} throughout`;
  const pairs = points.map(([position, scale]) => `${short(scale)} at ${short(position)}`).join(", ");
  return `scale ${pairs} (${curve}${curve === "power" ? ` ${short(power)}` : ""})`;
}

function inRange(scale, start, end, outside) {
  checkScale(scale, "scale");
  checkScale(outside, "outside");
  checkPosition(start, "start_percent");
  checkPosition(end, "end_percent");
  if (start > end)
    throw new Error(
      `start_percent: ${short(start)} lies after end_percent ${short(end)}; swap the two, or lower start_percent.`,
    );
  return steps(end > start ? [[0, outside], [start, scale], [end, outside]] : [[0, outside]]);
}

function combinedGeneration(switchAt, scale) {
  checkScale(scale, "scale");
  checkPosition(switchAt, "switch_percent");
  return steps([[0, 0], [switchAt, scale]]);
}

function ramp(startScale, endScale, curve, power) {
  checkScale(startScale, "start_scale");
  checkScale(endScale, "end_scale");
  if (curve === "power" && !(Number.isFinite(power) && power > 0))
    throw new Error(
      `power: ${python(power)} cannot be used; give a number above 0 (1 is linear, 2 starts slowly).`,
    );
  /** @type {Point[]} */
  const ends = [[0, startScale], [1, endScale]];
  return { curve, points: ends, power: curve === "power" ? power : 1 };
}

function keyframes(text, interpolation) {
  /** @type {Point[]} */
  const points = [];
  for (const part of text.replaceAll("\n", ",").split(",")) {
    const pair = part.replace(SPACE_AROUND, "");
    if (!pair) continue;
    const point = parsePair(pair);
    const last = points.at(-1);
    if (last && point[0] <= last[0])
      throw new Error(
        `keyframes: ${short(point[0])} comes after ${short(last[0])}; give each position once, in rising order.`,
      );
    points.push(point);
  }
  if (!points.length)
    throw new Error("keyframes: there are none; write position:scale pairs, such as 0:0, 0.5:1.");
  if (interpolation === "step") return steps([[0, points[0][1]], ...points]);
  if (points[0][0] > 0) points.unshift([0, points[0][1]]);
  if (points.at(-1)[0] < 1) points.push([1, points.at(-1)[1]]);
  return { curve: "linear", points, power: 1 };
}

/** Each scale held until the next position: no position that no step reaches, no change that is none. */
function steps(points) {
  const last = new Map(points.filter(([position]) => position < 1)); // of two at one position the later one counts
  const changes = [...last].filter(([, scale], i, all) => i === 0 || scale !== all[i - 1][1]);
  return { curve: "step", points: changes, power: 1 };
}

function parsePair(pair) {
  const numbers = pair.split(":").map(parseNumber);
  if (numbers.length !== 2 || numbers.includes(null))
    throw new Error(`keyframes: '${shown(pair)}' is not position:scale; write pairs of numbers, such as 0:0, 0.5:1.`);
  return [checkPosition(numbers[0], "keyframes"), checkScale(numbers[1], "keyframes")];
}

/** What a text says, fit for a message: on one line, and not longer than 80 characters. */
function shown(text) {
  const characters = [...text];
  const printable = characters.slice(0, 81).map((character) => character.replace(/[\p{C}\p{Z}]/u, " "));
  const line = printable.join("").split(" ").filter(Boolean).join(" ");
  return characters.length <= 80 ? line : `${[...line].slice(0, 80).join("")}…`;
}

function checkScale(scale, name) {
  if (scale >= -10 && scale <= 10) return scale;
  throw new Error(
    `${name}: ${python(scale)} cannot be used; give a number from -10 to 10 ` +
      "(0 = base model, 1 = tuned model, above 1 = beyond it).",
  );
}

function checkPosition(position, name) {
  if (position >= 0 && position <= 1) return position;
  throw new Error(
    `${name}: position ${python(position)} is no part of the run; give a number from 0 (start) to 1 (end).`,
  );
}

// Numbers and spaces as Python reads them: other than JavaScript it takes 1_000 and inf, and neither "" nor 0x10.
const SPACE = "[\\t-\\r\\x1c- \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const SPACE_AROUND = new RegExp(`^${SPACE}+|${SPACE}+$`, "g");
const DIGITS = "\\d+(?:_\\d+)*";
const NUMBER = new RegExp(`^[+-]?(?:${DIGITS}\\.?(?:${DIGITS})?|\\.${DIGITS})(?:e[+-]?${DIGITS})?$`, "i");

/** @returns {number | null} null where the text is no number */
function parseNumber(text) {
  const bare = text.replace(SPACE_AROUND, "");
  if (NUMBER.test(bare)) return Number(bare.replaceAll("_", ""));
  if (/^[+-]?nan$/i.test(bare)) return NaN;
  if (/^[+-]?inf(inity)?$/i.test(bare)) return bare.startsWith("-") ? -Infinity : Infinity;
  return null;
}

/** A float as Python writes it. */
function python(number) {
  if (!Number.isFinite(number)) return String(number).toLowerCase().replace("infinity", "inf");
  const [digits, exponent] = number.toExponential().split("e");
  if (number !== 0 && (exponent < -4 || exponent >= 16))
    return `${digits}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
  const text = Object.is(number, -0) ? "-0" : String(number);
  return text.includes(".") ? text : `${text}.0`;
}

function short(number) {
  return python(number).replace(/\.0$/, "");
}
