/**
 * The cells of a sweep as a table: what their labels say differently becomes columns and rows. No page, no ComfyUI.
 *
 * A label has parts of a name and a value, such as "switch 0.5, scale 1.6, seed 42".
 */

export class CellTable {
  /**
   * @param {string[]} labels one for each cell
   */
  constructor(labels) {
    const all = labels.map(partsOf);
    const names = [...new Set(all.flatMap((parts) => [...parts.keys()]))];
    const varying = names.filter((name) => new Set(all.map((parts) => parts.get(name))).size > 1);
    /** Name of what changes from column to column; empty where nothing does. */
    this.columnName = varying.includes("scale") ? "scale" : (varying[0] ?? "");
    const rest = varying.filter((name) => name !== this.columnName);
    /** The same for rows; several names where they change together. */
    this.rowName = rest.join(", ");
    const text = (parts, ofNames) => ofNames.map((name) => parts.get(name)).filter(Boolean).join(", ");
    this.#fill(all.map((parts) => [text(parts, rest), text(parts, [this.columnName])]));
  }

  /** @type {string[]} what the labels of a column have in common */
  columns = [];
  /** @type {string[]} */
  rows = [];
  /** @type {(number | undefined)[][]} */
  #cells = [];
  /** @type {[row: number, column: number][]} */
  #places = [];

  #fill(places) {
    if (new Set(places.map(String)).size < places.length) {
      // Two cells in one place: one after the other they can all be reached.
      places = places.map((_, index) => ["", `picture ${index + 1}`]);
      this.columnName = "picture";
      this.rowName = "";
    }
    const [rows, columns] = [0, 1].map((part) => numbered(places.map((place) => place[part])));
    [this.rows, this.columns] = [[...rows.keys()], [...columns.keys()]];
    this.#places = places.map(([row, column]) => [rows.get(row), columns.get(column)]);
    this.#cells = this.rows.map(() => []);
    this.#places.forEach(([row, column], index) => (this.#cells[row][column] = index));
  }

  /** Number of the cell in a place; undefined where there is none. */
  at(row, column) {
    return this.#cells[row]?.[column];
  }

  /**
   * The place of the cell that is nearest to a place in its column, or in its row.
   *
   * @returns {[row: number, column: number] | undefined} the place itself where it has a cell; undefined beyond the table
   */
  nearest(row, column, inColumn) {
    const along = inColumn ? ([, other]) => other === column : ([other]) => other === row;
    const distance = ([otherRow, otherColumn]) => Math.abs(otherRow - row) + Math.abs(otherColumn - column);
    return this.#places.filter(along).sort((one, other) => distance(one) - distance(other))[0];
  }

  /** Row and column of a cell. */
  placeOf(index) {
    return this.#places[index];
  }
}

/** Each text → its number, as they first come. @type {(texts: string[]) => Map<string, number>} */
function numbered(texts) {
  return new Map([...new Set(texts)].map((text, number) => [text, number]));
}

/**
 * @param {string} label
 * @returns {Map<string, string>} name → the part with that name
 */
export function partsOf(label) {
  return new Map(label.split(", ").map((part) => [part.split(" ")[0], part]));
}

/**
 * The number that a label gives for a name, such as 1.6 for "scale".
 *
 * @returns {number | undefined}
 */
export function numberIn(label, name) {
  const value = Number(partsOf(label).get(name)?.slice(name.length + 1) || NaN);
  return Number.isFinite(value) ? value : undefined;
}
