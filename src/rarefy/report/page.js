// SPDX-License-Identifier: Apache-2.0
// Draws the charts in the colours of the current theme, sorts tables, copies text.
"use strict";

(() => {
  const narrow = window.matchMedia("screen and (max-width: 860px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const PRINTED = 660; // pixels: the width of text on a sheet of A4
  const charts = [...document.querySelectorAll("figure.chart")].map((figure) => ({
    plot: figure.querySelector(".plot"),
    text: figure.querySelector("script").textContent,
  }));

  // Replaces every "var(--name)" by that variable's value, since Plotly knows no CSS variables.
  function themed(text) {
    const style = getComputedStyle(document.documentElement);
    return text.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  }

  function draw(width) {
    for (const { plot, text } of charts) {
      const figure = JSON.parse(themed(text))[narrow.matches && !width ? "narrow" : "wide"];
      figure.layout.width = width || plot.clientWidth;
      window.Plotly.react(plot, figure.data, figure.layout, { displayModeBar: false });
    }
  }

  async function loadLibrary() {
    const packed = document.getElementById("plotly").textContent;
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function start() {
    try {
      await loadLibrary();
    } catch (error) {
      const reason = `This browser can't draw the charts (${error}); the tables hold their figures.`;
      for (const { plot } of charts) plot.textContent = reason;
      return;
    }
    draw();
    let waiting = 0;
    let width = window.innerWidth;
    window.addEventListener("resize", () => {
      // Phones report a resize when the address bar hides: only a new width matters.
      if (window.innerWidth === width) return;
      width = window.innerWidth;
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(() => draw());
    });
    dark.addEventListener("change", () => draw());
    window.addEventListener("beforeprint", () => {
      document.documentElement.dataset.theme = "light";
      for (const details of document.querySelectorAll("details")) details.open = true;
      draw(PRINTED);
    });
    window.addEventListener("afterprint", () => {
      delete document.documentElement.dataset.theme;
      draw();
    });
    document.documentElement.dataset.drawn = "true";
  }

  function sortBy(table, column, button) {
    const heading = button.closest("th");
    const falling = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const numeric = rows.some((row) => row.cells[column].dataset.key !== undefined);
    const key = (row) => Number(row.cells[column].dataset.key); // NaN where nothing was measured
    const name = (row) => row.cells[column].textContent;
    const ascending = (a, b) => {
      if (!numeric) return name(a).localeCompare(name(b), undefined, { numeric: true });
      return key(a) === key(b) ? 0 : key(a) - key(b);
    };
    rows.sort((a, b) => {
      const missing = numeric ? Number.isNaN(key(a)) - Number.isNaN(key(b)) : 0;
      return missing || (falling ? ascending(b, a) : ascending(a, b));
    });
    body.append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = cell.querySelector("button");
      button.addEventListener("click", () => sortBy(table, column, button));
    });
  }

  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const code = button.closest(".code").querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        // No leave to write to the clipboard: select the text, so that one key press copies it.
        window.getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }

  start();
})();
