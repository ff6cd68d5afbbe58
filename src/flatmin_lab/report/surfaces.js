"use strict";
(() => {
  // Loss surfaces that can be turned. All of one figure turn together, so that they stay comparable.
  const START = { turn: -0.7, tilt: 0.55 };
  const STEP = 0.12;

  const element = (name, properties, parent) => {
    const made = Object.assign(document.createElement(name), properties);
    parent.append(made);
    return made;
  };

  const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  function draw(canvas, surface, colours, view, low, high) {
    const width = canvas.clientWidth, height = canvas.clientHeight, ratio = window.devicePixelRatio || 1;
    if (!width) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.clearRect(0, 0, width, height);

    const reach = Math.max(...surface.x.map(Math.abs)) || 1, size = Math.min(width, height * 1.25) * 0.28;
    const [ct, st, ci, si] = [Math.cos(view.turn), Math.sin(view.turn), Math.cos(view.tilt), Math.sin(view.tilt)];
    const project = (a, b, h) => {
      const x = a * ct - b * st, y = a * st + b * ct, z = h * 1.3 - 0.65;
      return [width / 2 + size * x, height / 2 - size * (z * ci + y * si), y * ci - z * si];
    };
    const line = (from, to, colour) => {
      const [p, q] = [project(...from), project(...to)];
      pen.strokeStyle = colour;
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(p[0], p[1]);
      pen.lineTo(q[0], q[1]);
      pen.stroke();
    };

    const muted = theme("muted"), grid = theme("grid");
    const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]];
    corners.forEach((c, i) => line([...c, 0], [...corners[(i + 1) % 4], 0], grid));

    const faces = [], n = surface.x.length, at = surface.x.map((x) => x / reach);
    for (let i = 0; i + 1 < n; i++) {
      for (let j = 0; j + 1 < n; j++) {
        const cells = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]];
        const heights = cells.map(([a, b]) => surface.height[a][b]);
        if (heights.includes(null)) continue;
        const points = cells.map(([a, b], k) => project(at[a], at[b], heights[k]));
        const mean = heights.reduce((a, b) => a + b) / 4;
        faces.push({ points, mean, depth: points.reduce((a, p) => a + p[2], 0) });
      }
    }
    faces.sort((a, b) => b.depth - a.depth);
    for (const face of faces) {
      const colour = colours[Math.min(colours.length - 1, Math.floor(face.mean * colours.length))];
      pen.fillStyle = pen.strokeStyle = colour;
      pen.lineWidth = 0.6;
      pen.beginPath();
      face.points.forEach((p, k) => (k ? pen.lineTo(p[0], p[1]) : pen.moveTo(p[0], p[1])));
      pen.closePath();
      pen.fill();
      pen.strokeStyle = "rgba(255, 255, 255, 0.28)";
      pen.stroke();
    }

    // The scale stands at the leftmost corner, where it hides nothing.
    const left = corners.reduce((a, b) => (project(...a, 0)[0] < project(...b, 0)[0] ? a : b));
    line([...left, 0], [...left, 1], muted);
    pen.fillStyle = muted;
    pen.font = "12px system-ui, sans-serif";
    pen.textAlign = "left";
    const bottom = project(...left, 0), top = project(...left, 1);
    pen.fillText(low, Math.max(2, bottom[0] - 8 - pen.measureText(low).width), bottom[1] + 4);
    pen.fillText(high, Math.max(2, top[0] - 8 - pen.measureText(high).width), top[1] + 4);
  }

  function show(place) {
    const data = JSON.parse(place.dataset.solids), view = { ...START };
    const pair = element("div", { className: "pair" }, place);
    const canvases = data.surfaces.map((surface) => {
      const box = element("div", {}, pair);
      element("p", { className: "solid-title", textContent: surface.title }, box);
      const canvas = element("canvas", { className: "solid", tabIndex: 0 }, box);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", surface.title + ": training loss as a surface from " + data.low + " to " + data.high
        + ". Arrow keys turn it.");
      return canvas;
    });
    let waiting = false;
    const redraw = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        canvases.forEach((c, i) => draw(c, data.surfaces[i], data.colours, view, data.low, data.high));
      });
    };
    const turn = (by, tilt) => {
      view.turn += by;
      view.tilt = Math.min(1.5, Math.max(0.05, view.tilt + tilt));
      redraw();
    };

    const keys = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };
    for (const canvas of canvases) {
      let last = null;
      canvas.addEventListener("keydown", (event) => {
        if (!(event.key in keys) || event.ctrlKey || event.altKey || event.metaKey) return;
        event.preventDefault();
        turn(...keys[event.key]);
      });
      canvas.addEventListener("pointerdown", (event) => {
        last = [event.clientX, event.clientY];
        canvas.setPointerCapture(event.pointerId);
      });
      canvas.addEventListener("pointermove", (event) => {
        if (!last) return;
        turn((event.clientX - last[0]) * -0.01, (event.clientY - last[1]) * 0.01);
        last = [event.clientX, event.clientY];
      });
      for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
    }

    const bar = element("div", { className: "buttons" }, place);
    const buttons = [["Turn left", keys.ArrowLeft], ["Turn right", keys.ArrowRight],
      ["More from above", keys.ArrowUp], ["More from the side", keys.ArrowDown]];
    for (const [label, by] of buttons) {
      element("button", { type: "button", textContent: label }, bar).addEventListener("click", () => turn(...by));
    }
    element("button", { type: "button", textContent: "As at first" }, bar).addEventListener("click", () => {
      Object.assign(view, START);
      redraw();
    });
    new ResizeObserver(redraw).observe(pair);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    redraw();
  }

  document.querySelectorAll("[data-solids]").forEach(show);
})();
