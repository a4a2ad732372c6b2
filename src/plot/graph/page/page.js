"use strict";
(() => {
  const data = JSON.parse(document.getElementById("graph").textContent);
  const [height, width] = data.input;
  const element = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  // Integers are little-endian whatever the machine is.
  const integers = (text, bits) => {
    const raw = new DataView(bytes(text).buffer);
    const count = (raw.byteLength * 8) / bits;
    return Uint32Array.from({ length: count }, (_, i) =>
      bits === 16 ? raw.getUint16(2 * i, true) : raw.getUint32(4 * i, true));
  };

  // A block's arrays are decoded when it is first looked at.
  const blocks = data.blocks.map((b) => {
    let edges, distances, starts, sources;
    return {
      ...b,
      rows: b.nodes[0],
      columns: b.nodes[1],
      get edgeList() { return (edges ??= integers(b.edges, b.width)); },
      get distanceList() { return (distances ??= bytes(b.distances)); },
      // In the place of a neighbour that a patch does not have.
      none: b.width === 16 ? 0xffff : 0xffffffff,
      // For each candidate, where the links that end at it are: starts[c] to starts[c + 1] of sources, as places in edgeList.
      get reverse() {
        if (!starts) {
          const list = this.edgeList, none = this.none;
          starts = new Uint32Array(b.candidates[0] * b.candidates[1] + 1);
          for (const c of list) if (c !== none) starts[c + 1]++;
          for (let c = 1; c < starts.length; c++) starts[c] += starts[c - 1];
          const next = starts.slice();
          sources = new Uint32Array(list.length);
          list.forEach((c, i) => { if (c !== none) sources[next[c]++] = i; });
        }
        return { starts, sources };
      },
    };
  });

  const at = (b, x, y) =>
    Math.min(Math.floor(y / b.stride), b.rows - 1) * b.columns + Math.min(Math.floor(x / b.stride), b.columns - 1);
  const rectangle = (stride, row, column, [tall, wide]) => {
    const left = column * wide * stride, top = row * tall * stride;
    return [left, top, Math.min(left + wide * stride, width) - left, Math.min(top + tall * stride, height) - top];
  };
  const nodeRectangle = (b, node) =>
    rectangle(b.stride, Math.floor(node / b.columns), node % b.columns, [1, 1]);
  const candidateRectangle = (b, c) =>
    rectangle(b.stride, Math.floor(c / b.candidates[1]), c % b.candidates[1], b.pooled);
  // The candidate that a node is part of, or -1 where pooling left it out.
  const candidateOf = (b, node) => {
    const row = Math.floor(Math.floor(node / b.columns) / b.pooled[0]);
    const column = Math.floor((node % b.columns) / b.pooled[1]);
    return row < b.candidates[0] && column < b.candidates[1] ? row * b.candidates[1] + column : -1;
  };
  const distance = (b, byte) => b.range[0] + ((b.range[1] - b.range[0]) * byte) / 255;

  const linksOf = (b, node) => {
    const places = Array.from({ length: b.k }, (_, j) => node * b.k + j).filter((i) => b.edgeList[i] !== b.none);
    const own = candidateOf(b, node);
    const { starts, sources } = b.reverse;
    const incoming = own < 0 ? [] : Array.from(sources.subarray(starts[own], starts[own + 1]));
    const link = (i) => ({ node: Math.floor(i / b.k), candidate: b.edgeList[i], byte: b.distanceList[i] });
    return { outgoing: places.map(link), incoming: incoming.map(link), own };
  };

  const state = { block: 0, x: width / 2, y: height / 2, held: false };
  const shown = { out: true, in: true, all: true };

  // From 1 for the nearest to 0.25 for the farthest of a set.
  const opacity = (links) => {
    const all = links.map((l) => l.byte);
    const low = Math.min(...all), span = Math.max(...all) - low;
    return (l) => (span > 0 ? 1 - 0.75 * ((l.byte - low) / span) : 1);
  };

  const picture = new Image();
  const star = (g, x, y, radius, fill) => {
    g.beginPath();
    for (let i = 0; i < 10; i++) {
      const r = i % 2 ? radius * 0.382 : radius, a = Math.PI * (i / 5 - 0.5);
      g.lineTo(x + r * Math.cos(a), y + r * Math.sin(a));
    }
    g.closePath();
    g.fillStyle = fill;
    g.fill();
  };

  const draw = (canvas, b, large) => {
    const css = canvas.clientWidth;
    if (!css) return;
    const ratio = window.devicePixelRatio || 1;
    const w = Math.round(css * ratio), h = Math.max(1, Math.round((w * height) / width));
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    canvas.style.aspectRatio = `${width} / ${height}`;
    const g = canvas.getContext("2d");
    const s = w / width;
    g.setTransform(1, 0, 0, 1, 0, 0);
    g.globalAlpha = 1;
    g.drawImage(picture, 0, 0, w, h);
    const theme = getComputedStyle(document.documentElement);
    const color = (name) => theme.getPropertyValue(name);
    g.fillStyle = color("--veil");
    g.fillRect(0, 0, w, h);
    const box = ([x, y, bw, bh], fill, stroke, alpha, dash) => {
      const [l, t, r, u] = [x * s, y * s, (x + bw) * s, (y + bh) * s].map(Math.round);
      g.globalAlpha = alpha;
      g.fillStyle = fill;
      g.fillRect(l, t, Math.max(1, r - l), Math.max(1, u - t));
      const line = Math.min(2 * ratio, (r - l) / 5);
      if (line >= 0.8) {
        g.globalAlpha = Math.max(alpha, 0.6);
        g.lineWidth = line;
        g.strokeStyle = stroke;
        g.setLineDash(dash ? [3 * line, 2 * line] : []);
        g.strokeRect(l + line / 2, t + line / 2, r - l - line, u - t - line);
        g.setLineDash([]);
      }
    };
    const grid = (cell, color) => {
      if (cell[0] * s < 6 * ratio || cell[1] * s < 6 * ratio) return;
      g.globalAlpha = 0.35;
      g.fillStyle = color;
      for (let x = cell[1]; x < width; x += cell[1]) g.fillRect(Math.round(x * s), 0, 1, h);
      for (let y = cell[0]; y < height; y += cell[0]) g.fillRect(0, Math.round(y * s), w, 1);
    };
    if (large) grid([b.stride, b.stride], "#ffffff");
    if (large && b.pooled[0] * b.pooled[1] > 1) grid(b.pooled.map((p) => p * b.stride), "#000000");
    const node = at(b, state.x, state.y);
    const links = linksOf(b, node);
    if (shown.in && links.incoming.length) {
      const alpha = opacity(links.incoming);
      for (const l of links.incoming) box(nodeRectangle(b, l.node), "#e69f00", color("--in-line"), 0.8 * alpha(l), true);
    }
    if (shown.out) {
      const alpha = opacity(links.outgoing);
      for (const l of links.outgoing) box(candidateRectangle(b, l.candidate), "#56b4e9", color("--out-line"), 0.8 * alpha(l), false);
    }
    g.globalAlpha = 1;
    const [x, y, nw, nh] = nodeRectangle(b, node);
    const radius = Math.max(7 * ratio, Math.min(14 * ratio, nw * s * 0.45));
    star(g, (x + nw / 2) * s, (y + nh / 2) * s, radius + 4.5 * ratio, "#000000");
    star(g, (x + nw / 2) * s, (y + nh / 2) * s, radius + 3 * ratio, "#ffffff");
    star(g, (x + nw / 2) * s, (y + nh / 2) * s, radius, "#d55e00");
  };

  const small = blocks.map((b, i) => {
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    button.type = "button";
    button.append(`Block ${b.block}, stage ${b.stage}: ${b.rows}×${b.columns}`, canvas);
    button.addEventListener("click", () => { state.block = i; update(); });
    element("all").append(button);
    return { button, canvas };
  });

  let waiting = false;
  const update = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; render(); });
  };

  const render = () => {
    const b = blocks[state.block];
    const node = at(b, state.x, state.y);
    const links = linksOf(b, node);
    element("block").value = state.block;
    element("block-name").textContent = `Block ${b.block} of ${blocks.length}`;
    draw(element("view"), b, true);
    small.forEach(({ button, canvas }, i) => {
      button.setAttribute("aria-pressed", String(i === state.block));
      if (shown.all) draw(canvas, blocks[i], false);
    });
    const row = Math.floor(node / b.columns), column = node % b.columns;
    element("patch").textContent = `Patch at row ${row}, column ${column}`;
    const pooled = b.pooled[0] * b.pooled[1] > 1;
    element("grid").textContent = `Stage ${b.stage}: ${b.rows}×${b.columns} patches of ${b.stride} pixels, ${b.varies ? "up to " : ""}${b.k} neighbours each`
      + (pooled ? ` among ${b.candidates[0]}×${b.candidates[1]} pooled ones.` : ".");
    const sources = [...new Set(links.incoming.map((l) => l.node))];
    element("incoming").textContent = links.own < 0
      ? "No patch can point at it: pooling leaves it out."
      : `${sources.length} ${sources.length === 1 ? "patch points" : "patches point"} at ${pooled ? "the pooled patch it is part of" : "it"}.`;
    element("measure").textContent = b.measure;
    element("neighbours").replaceChildren(...links.outgoing.map((l, i) => {
      const line = document.createElement("tr");
      const where = `${Math.floor(l.candidate / b.candidates[1])}, ${l.candidate % b.candidates[1]}`;
      for (const text of [String(i + 1), where, distance(b, l.byte).toFixed(3)]) {
        const cell = document.createElement("td");
        cell.textContent = text;
        line.append(cell);
      }
      return line;
    }));
    element("hint").textContent = state.held ? "Held: click or tap it again, or Esc, to let go." : "";
    // What is highlighted, for those who read the page by program.
    Object.assign(element("info").dataset, {
      block: b.block,
      node,
      neighbours: links.outgoing.map((l) => l.candidate).join(","),
      incoming: sources.join(","),
    });
  };

  const place = (event, canvas) => {
    const frame = canvas.getBoundingClientRect();
    const inside = (v, most) => Math.min(Math.max(v, 0), most - 1e-3);
    return [
      inside(((event.clientX - frame.left) / frame.width) * width, width),
      inside(((event.clientY - frame.top) / frame.height) * height, height),
    ];
  };
  const view = element("view");
  view.addEventListener("pointermove", (event) => {
    if (state.held || event.pointerType === "touch") return;
    [state.x, state.y] = place(event, view);
    update();
  });
  view.addEventListener("click", (event) => {
    const b = blocks[state.block];
    const [x, y] = place(event, view);
    state.held = !(state.held && at(b, x, y) === at(b, state.x, state.y));
    [state.x, state.y] = [x, y];
    update();
  });

  const toggle = (id, name) => {
    const input = element(id);
    const change = () => {
      shown[name] = input.checked;
      element("all").hidden = !shown.all;
      update();
    };
    input.addEventListener("change", change);
    return () => { input.checked = !input.checked; change(); };
  };
  const flip = { n: toggle("show-out", "out"), p: toggle("show-in", "in"), s: toggle("show-all", "all") };
  element("block").max = blocks.length - 1;
  element("block").addEventListener("input", (event) => { state.block = Number(event.target.value); update(); });

  const theme = () => {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    update();
  };
  element("theme").addEventListener("click", theme);

  const toBlock = (i) => { state.block = Math.min(Math.max(i, 0), blocks.length - 1); update(); };
  // One patch along; the middle of the patch it leads to.
  const move = (down, across) => {
    const b = blocks[state.block];
    const node = at(b, state.x, state.y);
    const row = Math.min(Math.max(Math.floor(node / b.columns) + down, 0), b.rows - 1);
    const column = Math.min(Math.max((node % b.columns) + across, 0), b.columns - 1);
    const [x, y, w, h] = nodeRectangle(b, row * b.columns + column);
    Object.assign(state, { x: x + w / 2, y: y + h / 2, held: true });
    update();
  };
  const keys = {
    ArrowUp: () => move(-1, 0), ArrowDown: () => move(1, 0), ArrowLeft: () => move(0, -1), ArrowRight: () => move(0, 1),
    "[": () => toBlock(state.block - 1), "]": () => toBlock(state.block + 1),
    PageUp: () => toBlock(state.block - 1), PageDown: () => toBlock(state.block + 1),
    Home: () => toBlock(0), End: () => toBlock(blocks.length - 1),
    Escape: () => { state.held = false; update(); },
    t: theme, ...flip,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    // The slider knows its own keys.
    if (event.target.type === "range" && !["[", "]", "Escape"].includes(event.key) && event.key.length > 1) return;
    event.preventDefault();
    keys[event.key]();
  });

  element("about").textContent = `${data.weights}; image of ${data.original[1]}×${data.original[0]} pixels`
    + `, seen at ${data.seen[1]}×${data.seen[0]}; ${blocks.length} blocks`;
  window.addEventListener("resize", update);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  picture.addEventListener("load", update);
  picture.src = data.image;
})();
