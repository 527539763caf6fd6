// The patch viewer: images with their visual tokens, and the words that lenses read in them.
// One module for notebooks (anywidget calls render) and for pages without Python (stand_in.js).
// Words and names are text from a model's vocabulary: they enter the page as textContent only.

const NO_CLASS = 255;
const NOT_FINITE = 65535;
const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array };
// Stops of a scale that colour-blind readers see as dark to light as well.
const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const LEAST_CELL_WITH_A_WORD = 34; // pixels
const AROUND_A_WORD = 40; // characters

const decoded = new WeakMap();

/** Numbers from little-endian base64, decoded when they are first asked for. */
function numbers(packed) {
  if (!decoded.has(packed)) {
    const text = atob(packed.base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    decoded.set(packed, new ARRAYS[packed.kind](bytes.buffer));
  }
  return decoded.get(packed);
}

/** An element with attributes, listeners (onclick, ...) and children. */
function element(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const unique = (values) => [...new Set(values)];
const rounded = (value) =>
  !Number.isFinite(value) ? "–" : String(Number(value.toPrecision(3))).replace("-", "−");
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function colorAt(share) {
  const place = Math.min(Math.max(share, 0), 1) * (SCALE.length - 1);
  const below = Math.min(Math.floor(place), SCALE.length - 2);
  const mixed = SCALE[below].map((v, i) => Math.round(v + (place - below) * (SCALE[below + 1][i] - v)));
  return `rgb(${mixed.join(" ")})`;
}

/** Whether the notebook, or else the system, is dark. */
function prefersDark() {
  const { jpThemeLight, vscodeThemeKind } = document.body.dataset;
  if (jpThemeLight !== undefined) return jpThemeLight === "false";
  if (vscodeThemeKind !== undefined) return vscodeThemeKind.includes("dark");
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** What the data says, by condition, lens, layer and token. */
class Tokens {
  constructor(data) {
    this.data = data;
    this.readings = new Map(data.readings.map((r) => [`${r.condition}\n${r.lens}\n${r.layer}`, r]));
    this.conditions = unique(data.readings.map((r) => r.condition));
    this.classes = numbers(data.tokens.class);
    this.count = data.tokens.count;
  }

  lenses(condition) {
    return unique(this.data.readings.filter((r) => r.condition === condition).map((r) => r.lens));
  }

  layers({ condition, lens }) {
    const mine = this.data.readings.filter((r) => r.condition === condition && r.lens === lens);
    return mine.map((r) => r.layer);
  }

  reading({ condition, lens, layer }) {
    return this.readings.get(`${condition}\n${lens}\n${layer}`);
  }

  /** The words of a token, best first: {word, score, context}. */
  words(shown, token, most = Infinity) {
    const reading = this.reading(shown);
    if (!reading) return [];
    const words = numbers(reading.words);
    const scores = numbers(reading.scores);
    const found = [];
    for (let rank = 0; rank < Math.min(reading.k, most); rank++) {
      const at = token * reading.k + rank;
      if (!words[at]) break;
      const step = (reading.high - reading.low) / (NOT_FINITE - 1);
      found.push({
        word: this.data.words[words[at]],
        score: scores[at] === NOT_FINITE ? NaN : reading.low + scores[at] * step,
        context: reading.contexts ? this.context(numbers(reading.contexts)[at]) : null,
      });
    }
    return found;
  }

  context(number) {
    if (!number) return null;
    const [text, start, stop, layer] = numbers(this.data.contexts).slice(4 * number - 4, 4 * number);
    return { text: this.data.sentences[text], start, stop, layer };
  }

  /** The measures that are known under a condition. */
  measures({ condition }) {
    return this.data.measures.filter((m) => m.condition === null || m.condition === condition);
  }

  value(measure, token, layer) {
    const at = measure.layers[0] === null ? 0 : measure.layers.indexOf(layer);
    return at < 0 ? NaN : numbers(measure.values)[at * this.count + token];
  }

  className(token) {
    return this.classes[token] === NO_CLASS ? "" : this.data.classes[this.classes[token]].name;
  }

  /** Where a token is, in words. */
  place(token) {
    const { row, col, kind, kinds } = this.data.tokens;
    const [r, c] = [numbers(row)[token], numbers(col)[token]];
    return r < 0 ? `${kinds[numbers(kind)[token]] ?? "token"} without a place` : `row ${r}, column ${c}`;
  }
}

class Viewer {
  constructor(model, el) {
    this.model = model;
    this.tokens = new Tokens(model.get("data"));
    const { data, conditions } = this.tokens;
    this.filters = { classes: new Set([...data.classes.map((c) => c.name), ""]), word: "" };
    this.panel = 0;
    this.color = "class";
    this.comparing = conditions.length > 1;
    this.several = false;
    this.panes = this.startingPanes();
    this.hovered = null;
    this.current = null;
    this.root = element("div", { class: "embedlens-viewer" });
    for (const { name, color } of data.classes) this.root.style.setProperty(`--${name}`, color);
    this.setTheme(data.theme ?? (prefersDark() ? "dark" : "light"));
    this.details = element("aside", { class: "details", "aria-label": "The token's words" });
    this.chosen = element("p", { class: "chosen", role: "status" });
    this.stages = element("div", { class: "panes" });
    this.root.append(
      element("h2", {}, data.title),
      this.bar(),
      element("div", { class: "body" }, this.stages, this.details),
      this.chosen,
      ...data.notes.map((note) => element("p", { class: "note" }, note)),
      element("p", { class: "note help" },
        "Hover, tap or move with the arrow keys to read a token; click or press Enter to select it, "
        + "with Shift to add it. Page Up and Page Down change the layer"
        + (this.tokens.conditions.length > 1 ? " of both pictures" : "") + ", Escape clears the selection."),
    );
    el.append(this.root);
    this.onSelected = () => this.showSelection();
    model.on("change:selected", this.onSelected);
    this.sizes = new ResizeObserver(() => this.fitWords());
    this.sizes.observe(this.stages);
    this.build();
  }

  /** What is shown first; the second pane shows another condition, lens or layer if there is one. */
  startingPanes() {
    const start = (condition, lens) => {
      const layers = this.tokens.layers({ condition, lens });
      return { condition, lens, layer: layers[0] };
    };
    const [first, second = first] = this.tokens.conditions;
    const lenses = this.tokens.lenses(first);
    const one = start(first, lenses[0]);
    if (second !== first) return [one, start(second, this.tokens.lenses(second)[0])];
    const layers = this.tokens.layers(one);
    return [one, lenses.length > 1 ? start(first, lenses[1]) : { ...one, layer: layers.at(-1) }];
  }

  setTheme(theme) {
    this.root.dataset.theme = theme;
  }

  // The controls that are about everything.

  bar() {
    const { data } = this.tokens;
    const bar = element("div", { class: "bar", role: "toolbar", "aria-label": "What is shown" });
    if (data.panels.length > 1) {
      bar.append(this.select("Image", data.panels.map((p) => p.name), 0, (index) => {
        this.panel = index;
        this.current = this.hovered = null;
        this.build();
      }));
    }
    if (data.readings.length > 1) {
      bar.append(this.check("Compare", this.comparing, (on) => {
        this.comparing = on;
        this.build();
      }));
    }
    const present = data.classes.filter((_, i) => this.tokens.classes.includes(i));
    if (present.length) {
      bar.append(element("fieldset", {}, element("legend", {}, "Classes"), ...present.map(({ name }) =>
        this.check(name, true, (on) => {
          this.filters.classes[on ? "add" : "delete"](name);
          this.paint();
        }, element("span", { class: "swatch", "data-class": name })))));
    }
    const found = element("input", { type: "search", placeholder: "any word", size: 10 });
    found.addEventListener("input", () => {
      this.filters.word = found.value.trim().toLowerCase();
      this.paint();
    });
    bar.append(element("label", {}, "Word ", found));
    const names = unique(data.measures.map((m) => m.name));
    const colors = [...(present.length ? ["class"] : ["nothing"]), "score", ...names];
    this.color = colors[0];
    bar.append(this.select("Colour by", colors, 0, (index) => {
      this.color = colors[index];
      this.paint();
    }));
    bar.append(this.check("Words", true, (on) => {
      this.root.classList.toggle("wordless", !on);
    }));
    bar.append(this.check("Select several", false, (on) => {
      this.several = on; // what Shift does, for fingers
    }));
    bar.append(element("button", {
      type: "button",
      class: "theme",
      "aria-label": "Light or dark",
      title: "Light or dark",
      onclick: () => this.setTheme(this.root.dataset.theme === "dark" ? "light" : "dark"),
    }, "◐"));
    return bar;
  }

  select(label, names, chosen, onChange) {
    const options = names.map((name, i) => element("option", { value: String(i), selected: i === chosen }, String(name)));
    const made = element("select", { onchange: () => onChange(Number(made.value)) }, ...options);
    return element("label", {}, `${label} `, made);
  }

  check(label, on, onChange, before = null) {
    const box = element("input", { type: "checkbox", checked: on, onchange: () => onChange(box.checked) });
    return element("label", { class: "check" }, box, before, ` ${label}`);
  }

  // The pictures.

  build() {
    const panel = this.tokens.data.panels[this.panel];
    this.placed = numbers(panel.tokens);
    this.boxes = numbers(panel.boxes);
    this.unplaced = numbers(panel.unplaced);
    this.shown = [...this.placed, ...this.unplaced];
    if (this.current === null) this.current = this.shown[0] ?? null;
    this.drawn = (this.comparing ? [0, 1] : [0]).map((index) => this.pane(index, panel));
    this.root.classList.toggle("comparing", this.comparing);
    this.stages.replaceChildren(...this.drawn.map((d) => d.section));
    this.paint();
    this.showSelection();
    this.fitWords();
  }

  pane(index, panel) {
    const caption = element("p", { class: "caption" });
    const scale = element("p", { class: "scale" });
    const stage = element("div", {
      class: "stage",
      role: "grid",
      "aria-multiselectable": "true",
      onpointerleave: () => this.hover(null),
      onkeydown: (event) => this.onKey(event, index),
    });
    stage.style.aspectRatio = `${panel.width} / ${Math.max(panel.height, 0.01)}`;
    stage.style.setProperty("--shape", panel.width / Math.max(panel.height, 0.01));
    const { pictures } = this.tokens.data;
    if (panel.picture !== null) {
      const { type, base64 } = pictures[panel.picture];
      const pixels = panel.width <= 160 ? "pixels" : "";
      stage.append(element("img", { class: pixels, alt: "", src: `data:${type};base64,${base64}`, draggable: false }));
    } else stage.classList.add("blank");
    const cells = new Map();
    for (const row of this.rows()) {
      const line = element("div", { role: "row", class: "row" });
      for (const at of row) {
        const [left, top, right, bottom] = this.boxes.slice(4 * at, 4 * at + 4);
        const cell = this.cell(this.placed[at], index);
        cell.style.left = `${(100 * left) / panel.width}%`;
        cell.style.top = `${(100 * top) / panel.height}%`;
        cell.style.width = `${(100 * (right - left)) / panel.width}%`;
        cell.style.height = `${(100 * (bottom - top)) / panel.height}%`;
        cells.set(this.placed[at], cell);
        line.append(cell);
      }
      stage.append(line);
    }
    let beside = null;
    if (this.unplaced.length) {
      const line = element("div", { role: "row", class: "chips" });
      for (const token of this.unplaced) {
        const cell = this.cell(token, index);
        cells.set(token, cell);
        line.append(cell);
      }
      beside = element("div", {
        class: "beside",
        role: "grid",
        "aria-label": "Tokens without a place in the image",
        onkeydown: (event) => this.onKey(event, index),
        onpointerleave: () => this.hover(null),
      }, line);
    }
    const section = element("section", { class: "pane" });
    const controls = element("div", { class: "controls" });
    section.append(controls, stage, beside ?? "", scale, caption);
    const drawn = { section, stage, cells, caption, scale, controls, index, marked: {} };
    this.controls(drawn);
    return drawn;
  }

  /** Places of the placed tokens, row by row from left to right. */
  rows() {
    const order = [...this.placed.keys()];
    const [top, left] = [(at) => this.boxes[4 * at + 1], (at) => this.boxes[4 * at]];
    order.sort((a, b) => top(a) - top(b) || left(a) - left(b));
    const rows = [];
    for (const at of order) {
      if (!rows.length || Math.abs(top(rows.at(-1)[0]) - top(at)) > 1e-3) rows.push([]);
      rows.at(-1).push(at);
    }
    return rows;
  }

  cell(token, index) {
    return element("div", {
      class: "cell",
      role: "gridcell",
      tabindex: "-1",
      "data-token": String(token),
      "data-class": this.tokens.className(token),
      onpointerenter: () => this.hover(token),
      onfocus: () => this.go(token),
      onclick: (event) => {
        this.toggle(token, this.several || event.shiftKey || event.ctrlKey || event.metaKey);
        this.drawn[index].cells.get(token).focus();
      },
    }, element("span", { class: "word" }));
  }

  controls(drawn) {
    const shown = this.panes[drawn.index];
    const { conditions } = this.tokens;
    const change = (next) => {
      const lenses = this.tokens.lenses(next.condition);
      if (!lenses.includes(next.lens)) [next.lens] = lenses;
      const layers = this.tokens.layers(next);
      if (!layers.includes(next.layer)) [next.layer] = layers;
      this.panes[drawn.index] = next;
      this.controls(drawn);
      this.paint();
    };
    drawn.change = change;
    const lenses = this.tokens.lenses(shown.condition);
    const layers = this.tokens.layers(shown);
    // A slider that is being moved stays the one it is.
    if (drawn.slider && drawn.of === `${shown.condition}\n${shown.lens}`) {
      drawn.slider.value = layers.indexOf(shown.layer);
      drawn.slider.setAttribute("aria-valuetext", `layer ${shown.layer}`);
      drawn.told.textContent = shown.layer;
      return;
    }
    drawn.of = `${shown.condition}\n${shown.lens}`;
    const slider = element("input", {
      type: "range", min: 0, max: layers.length - 1, step: 1,
      "aria-valuetext": `layer ${shown.layer}`,
      oninput: () => change({ ...this.panes[drawn.index], layer: layers[Number(slider.value)] }),
    });
    slider.value = layers.indexOf(shown.layer);
    drawn.slider = slider;
    drawn.told = element("output", {}, String(shown.layer));
    drawn.controls.replaceChildren(
      ...(conditions.length > 1 ? [this.select("Condition", conditions, conditions.indexOf(shown.condition),
        (i) => change({ ...this.panes[drawn.index], condition: conditions[i] }))] : []),
      ...(lenses.length > 1 ? [this.select("Lens", lenses, lenses.indexOf(shown.lens),
        (i) => change({ ...this.panes[drawn.index], lens: lenses[i] }))] : []),
      ...(layers.length > 1 ? [element("label", { class: "layer" }, "Layer ", slider, " ", drawn.told)] : []),
    );
  }

  /** Everything that depends on lens, layer, filters and colours. */
  paint() {
    for (const drawn of this.drawn) {
      const shown = this.panes[drawn.index];
      const values = this.values(shown);
      let left = 0;
      let differ = 0;
      for (const [token, cell] of drawn.cells) {
        const words = this.tokens.words(shown, token, 1);
        const first = words.length ? words[0].word : "";
        const fits = this.fits(shown, token);
        left += fits;
        const changed = drawn.index === 1
          && first !== (this.tokens.words(this.panes[0], token, 1)[0]?.word ?? "");
        differ += changed && fits;
        cell.firstChild.textContent = first;
        cell.classList.toggle("filtered", !fits);
        cell.classList.toggle("differs", changed);
        cell.classList.toggle("measured", values !== null && Number.isFinite(values.of(token)));
        if (values !== null) cell.style.setProperty("--value", colorAt(values.share(token)));
        const name = this.tokens.className(token);
        cell.setAttribute("aria-label", [this.tokens.place(token), name, first || "not read",
          ...(words.length ? [rounded(words[0].score)] : [])].filter(Boolean).join(", "));
      }
      const what = this.described(shown);
      drawn.stage.setAttribute("aria-label", `${this.tokens.data.panels[this.panel].name}, ${what}`);
      const hidden = drawn.cells.size - left;
      drawn.caption.textContent = [
        this.comparing || this.tokens.data.readings.length > 1 ? what : "",
        hidden ? `${left} of ${plural(drawn.cells.size, "token")} left by the filters` : "",
        drawn.index === 1 ? `the first word differs at ${differ} of ${plural(left, "token")}` : "",
      ].filter(Boolean).join("; ");
      drawn.scale.replaceChildren(...(values === null ? [] : [
        `${this.color === "score" ? this.tokens.reading(shown)?.rankedBy ?? "score" : this.color} `,
        element("span", {}, rounded(values.low)), element("span", { class: "ramp" }),
        element("span", {}, rounded(values.high)),
      ]));
    }
    this.showDetails();
  }

  described({ condition, lens, layer }) {
    const { conditions, data } = this.tokens;
    const several = unique(data.readings.map((r) => r.lens)).length > 1;
    return [conditions.length > 1 ? condition : "", several || lens !== "words" ? lens : "", `layer ${layer}`]
      .filter(Boolean).join(", ");
  }

  fits(shown, token) {
    if (!this.filters.classes.has(this.tokens.className(token))) return false;
    const { word } = this.filters;
    return !word || this.tokens.words(shown, token).some((w) => w.word.toLowerCase().includes(word));
  }

  /** What cells are coloured by, over the tokens of this picture; null for their classes. */
  values(shown) {
    if (["class", "nothing"].includes(this.color)) return null;
    const measure = this.tokens.measures(shown).find((m) => m.name === this.color);
    const of = this.color === "score"
      ? (token) => this.tokens.words(shown, token, 1)[0]?.score ?? NaN
      : (token) => (measure ? this.tokens.value(measure, token, shown.layer) : NaN);
    const known = this.shown.map(of).filter(Number.isFinite);
    const [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [NaN, NaN];
    return { of, low, high, share: (token) => (of(token) - low) / (high - low || 1) };
  }

  /** Words are written on cells that have room for one. */
  fitWords() {
    for (const { stage, cells } of this.drawn) {
      const widths = [...this.placed].slice(0, 1).map((token) => cells.get(token).getBoundingClientRect().width);
      const width = widths[0] ?? 0;
      stage.classList.toggle("worded", width >= LEAST_CELL_WITH_A_WORD);
      stage.style.setProperty("--word", `${Math.min(13, Math.max(9, width / 4.4))}px`);
    }
  }

  // The token that is looked at, and those that are selected.

  hover(token) {
    if (this.hovered === token) return;
    this.hovered = token;
    this.showDetails();
  }

  go(token) {
    this.current = token;
    this.hovered = null;
    this.showDetails();
  }

  toggle(token, add) {
    const before = this.model.get("selected") ?? [];
    const without = before.filter((one) => one !== token);
    const had = without.length < before.length;
    if (add) this.choose(had ? without : [...before, token]);
    else this.choose(had && before.length === 1 ? [] : [token]);
  }

  choose(tokens) {
    this.model.set("selected", tokens);
    this.model.save_changes();
    this.showSelection();
  }

  showSelection() {
    const selected = this.model.get("selected") ?? [];
    for (const { cells } of this.drawn) {
      for (const [token, cell] of cells) {
        cell.setAttribute("aria-selected", String(selected.includes(token)));
      }
    }
    this.chosen.replaceChildren();
    if (!selected.length) return;
    const told = selected.slice(0, 8).map((token) => `${token} (${this.tokens.place(token)})`).join("; ");
    const more = selected.length > 8 ? `; and ${selected.length - 8} more` : "";
    this.chosen.append(`Selected: ${told}${more} `, element("button", {
      type: "button", onclick: () => this.choose([]),
    }, "Clear"));
  }

  onKey(event, index) {
    const { current } = this;
    const drawn = this.drawn[index];
    const move = (token) => {
      if (token !== undefined && token !== null) drawn.cells.get(token).focus();
    };
    const row = () => this.rows().find((r) => r.some((at) => this.placed[at] === current)) ?? [];
    // Both pictures go together, as far apart as they were.
    const turn = (step) => {
      const next = this.panes.map((shown) => {
        const layers = this.tokens.layers(shown);
        return layers[layers.indexOf(shown.layer) + step];
      });
      if (next[index] === undefined) return;
      for (const { index: at, change } of this.drawn) {
        if (next[at] !== undefined) change({ ...this.panes[at], layer: next[at] });
      }
    };
    const keys = {
      ArrowLeft: () => move(this.neighbour(current, -1, 0)),
      ArrowRight: () => move(this.neighbour(current, 1, 0)),
      ArrowUp: () => move(this.neighbour(current, 0, -1)),
      ArrowDown: () => move(this.neighbour(current, 0, 1)),
      Home: () => move(event.ctrlKey ? this.shown[0] : this.placed[row()[0]]),
      End: () => move(event.ctrlKey ? this.shown.at(-1) : this.placed[row().at(-1)]),
      PageUp: () => turn(-1),
      PageDown: () => turn(1),
      Enter: () => this.toggle(current, this.several || event.shiftKey),
      " ": () => this.toggle(current, this.several || event.shiftKey),
      Escape: () => this.choose([]),
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook has keys of its own
    keys[event.key]();
  }

  /** The nearest token in a direction; tokens without a place stand one behind the other. */
  neighbour(token, dx, dy) {
    const beside = this.unplaced.indexOf(token);
    if (beside >= 0) {
      const next = beside + dx + dy;
      return next < 0 ? this.placed.at(-1) : this.unplaced[next];
    }
    const center = (at) => [(this.boxes[4 * at] + this.boxes[4 * at + 2]) / 2,
      (this.boxes[4 * at + 1] + this.boxes[4 * at + 3]) / 2];
    const [x, y] = center(this.placed.indexOf(token));
    let best = null;
    let least = Infinity;
    this.placed.forEach((other, at) => {
      const [ox, oy] = center(at);
      const along = dx * (ox - x) + dy * (oy - y);
      const across = Math.abs(dy * (ox - x)) + Math.abs(dx * (oy - y));
      if (across < 0.9 * along && along + 3 * across < least) [best, least] = [other, along + 3 * across];
    });
    return best ?? (dx + dy > 0 ? this.unplaced[0] : null) ?? token;
  }

  // What is said of one token.

  showDetails() {
    const token = this.hovered ?? this.current;
    for (const { cells, marked } of this.drawn) {
      // Of a thousand cells only those that change are touched.
      for (const one of unique([marked.token, token, marked.current, this.current])) {
        const cell = cells.get(one);
        cell?.classList.toggle("looked-at", one === token);
        if (cell) cell.tabIndex = one === this.current ? 0 : -1;
      }
      Object.assign(marked, { token, current: this.current });
    }
    if (token === null) {
      this.details.replaceChildren(element("p", {}, "There is no visual token here."));
      return;
    }
    const name = this.tokens.className(token);
    const swatch = name ? element("span", { class: "swatch", "data-class": name }) : null;
    const place = this.tokens.place(token);
    const { position } = this.tokens.data.tokens;
    this.details.replaceChildren(
      element("h3", {}, place[0].toUpperCase() + place.slice(1)),
      element("p", { class: "facts" }, swatch, name ? ` ${name}, ` : "",
        `token ${token}, position ${numbers(position)[token]} in the sequence`),
      element("div", { class: "columns" },
        ...this.drawn.map(({ index }) => this.told(token, index))),
    );
  }

  told(token, index) {
    const shown = this.panes[index];
    const words = this.tokens.words(shown, token);
    const rankedBy = this.tokens.reading(shown)?.rankedBy ?? "score";
    const known = words.map((w) => w.score).filter(Number.isFinite);
    const [low, high] = [Math.min(0, ...known), Math.max(0, ...known)];
    // A cosine grows from nothing, a log-probability falls from it.
    const share = (score) => (high > 0 ? score / high : low < 0 ? 1 - score / low : 0);
    const rows = words.map(({ word, score, context }) => element("tr", {},
      element("td", {}, element("b", {}, word), context ? this.sentence(context) : null),
      element("td", { class: "score" }, rounded(score), this.bar100(share(score)))));
    const values = this.tokens.measures(shown).map((measure) => element("div", {},
      element("dt", {}, measure.name), element("dd", {}, rounded(this.tokens.value(measure, token, shown.layer)))));
    return element("section", { class: "told" },
      element("h4", {}, this.described(shown)),
      rows.length ? element("table", {}, element("thead", {}, element("tr", {},
        element("th", { scope: "col" }, "word"), element("th", { scope: "col" }, rankedBy))),
      element("tbody", {}, ...rows)) : element("p", {}, "Not read: this token was dropped or has no direction."),
      values.length ? element("dl", {}, ...values) : null,
      this.layerByLayer(token, index));
  }

  bar100(share) {
    const made = element("span", { class: "share", "aria-hidden": "true" });
    made.style.setProperty("--share", `${Math.round(100 * Math.min(Math.max(share || 0, 0), 1))}%`);
    return made;
  }

  /** The sentence that a word stands in, with the word marked; of a long one what is around it. */
  sentence({ text, start, stop, layer }) {
    const from = Math.max(0, start - AROUND_A_WORD);
    const to = Math.min(text.length, Math.max(stop, 0) + AROUND_A_WORD);
    const before = (from ? "… " : "") + text.slice(from, Math.max(start, 0));
    const after = text.slice(Math.max(stop, 0), to) + (to < text.length ? " …" : "");
    const mark = start < 0 ? "" : element("mark", {}, text.slice(start, stop));
    const shown = { class: "sentence", title: text };
    return element("span", shown, before, mark, after, ` (layer ${layer})`);
  }

  /** The first word at every layer; each is a way there. */
  layerByLayer(token, index) {
    const shown = this.panes[index];
    const layers = this.tokens.layers(shown);
    if (layers.length < 2) return null;
    const steps = layers.map((layer) => {
      const [first] = this.tokens.words({ ...shown, layer }, token, 1);
      return element("li", {}, element("button", {
        type: "button",
        "aria-current": String(layer === shown.layer),
        onclick: () => this.drawn[index].change({ ...this.panes[index], layer }),
      }, element("span", {}, String(layer)), element("span", {}, first ? first.word : "–"),
      element("span", {}, first ? rounded(first.score) : "")));
    });
    return element("div", { class: "layers" }, element("h5", {}, "First word by layer"),
      element("ol", {}, ...steps));
  }

  remove() {
    this.model.off("change:selected", this.onSelected);
    this.sizes.disconnect();
    this.root.remove();
  }
}

function render({ model, el }) {
  const viewer = new Viewer(model, el);
  return () => viewer.remove();
}

export default { render };
