"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const views = new Map();
  let chosen = [];

  // The page shows title and legend itself, charts take the width of their column, and the page
  // keeps the choice of arms, so that it is one and the same in every chart.
  const onPage = (name, element) => {
    const spec = structuredClone(specs[name]);
    delete spec.title;
    spec.width = "container";
    spec.height = element.clientHeight - 8;
    spec.params = [{ name: "selected", value: chosen }, { name: "whole", value: false }];
    spec.background = null;
    spec.padding = { left: 5, top: 5, right: 14, bottom: 4 };
    spec.autosize = { type: "fit", contains: "padding" };
    spec.config = { ...spec.config, legend: { disable: true }, font: getComputedStyle(document.body).fontFamily };
    return spec;
  };

  const idsOf = (element) => element.dataset.series.split("|");
  const chips = [...document.querySelectorAll(".chip, .group .whole")];
  const clear = document.getElementById("clear");

  // What is chosen are series: arms that differ in their seed alone
  const choose = (series) => {
    chosen = series;
    document.body.classList.toggle("chosen", series.length > 0);
    chips.forEach((chip) =>
      chip.setAttribute("aria-pressed", String(idsOf(chip).every((id) => series.includes(id)))));
    document.querySelectorAll("tr[data-series]").forEach((row) =>
      row.classList.toggle("is-chosen", series.includes(row.dataset.series)));
    clear.hidden = series.length === 0;
    clear.textContent = `${series.length} chosen: show all`;
    for (const view of views.values()) view.signal("selected", series).runAsync();
  };

  const toggle = (ids, several) => {
    const all = ids.every((id) => chosen.includes(id));
    const others = chosen.filter((id) => !ids.includes(id));
    if (several) choose(all ? others : [...others, ...ids]);
    else choose(all && !others.length ? [] : ids);
  };

  const draw = async (element) => {
    const name = element.dataset.figure;
    if (views.has(name)) return;
    views.set(name, { signal: () => ({ runAsync: () => {} }) });
    const { view } = await vegaEmbed(element, onPage(name, element), { actions: false, renderer: "svg" });
    views.set(name, view);
    view.signal("selected", chosen).runAsync();
    view.addEventListener("click", (event, item) => {
      const series = item?.datum?.series;
      if (series) toggle([series], event.shiftKey); else if (chosen.length) choose([]);
    });
    element.dataset.drawn = "yes";
  };

  // Charts are drawn as they come near the window: the first picture does not wait for the last.
  const shown = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting) { shown.unobserve(entry.target); draw(entry.target); }
  }), { rootMargin: "600px" });
  document.querySelectorAll(".view").forEach((element) => shown.observe(element));
  addEventListener("beforeprint", () =>
    document.querySelectorAll("section:not([hidden]) .view").forEach((element) => {
      if (element.clientWidth) draw(element);
    }));

  chips.forEach((chip) => chip.addEventListener("click", () => toggle(idsOf(chip), true)));
  clear.addEventListener("click", () => choose([]));

  document.getElementById("metric")?.addEventListener("change", (event) =>
    document.querySelectorAll(".frontier").forEach((box) => {
      box.hidden = box.dataset.name !== event.target.value;
      if (!box.hidden) draw(box.querySelector(".view"));
    }));

  const budget = document.getElementById("budget");
  const filter = () => document.querySelectorAll(".scores tbody tr").forEach((row) => {
    row.hidden = budget.value !== "" && row.dataset.tokens !== "0" && row.dataset.tokens !== budget.value;
  });
  budget?.addEventListener("change", filter);
  if (budget) filter();

  const sortKey = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    const number = Number(text.replace("\u2212", "-"));
    return text === "" || text === "\u2013" ? null : Number.isNaN(number) ? text : number;
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.classList.add("sorts");
      head.tabIndex = 0;
      const sort = () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].map((row) => [sortKey(row, column), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
          return up ? order : -order;
        });
        table.tBodies[0].append(...rows.map(([, row]) => row));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
      });
    });
  });

  const download = (content, type, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const csv = (name) => {
    const tables = Object.values(specs[name].datasets ?? {}).concat(
      specs[name].layer.map((layer) => layer.data?.values ?? []), [specs[name].data?.values ?? []]);
    const rows = tables.reduce((most, rows) => (rows.length && Object.keys(rows[0]).length > Object.keys(most[0] ?? {}).length ? rows : most), []);
    const columns = Object.keys(rows[0] ?? {});
    const cell = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
    return [columns, ...rows.map((row) => columns.map((column) => row[column]))].map((row) => row.map(cell).join(",")).join("\n") + "\n";
  };
  document.querySelectorAll(".save button").forEach((button) => button.addEventListener("click", async () => {
    const name = button.parentElement.dataset.save;
    const kind = button.dataset.kind;
    if (kind === "whole") {
      const whole = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(whole));
      views.get(name)?.signal("whole", whole).runAsync();
      return;
    }
    if (kind === "csv") { download(csv(name), "text/csv", `${name}.csv`); return; }
    const spec = vegaLite.compile({ background: "white", ...specs[name] }).spec;
    const view = new vega.View(vega.parse(spec), { renderer: "none" });
    if (kind === "svg") { download(await view.toSVG(), "image/svg+xml", `${name}.svg`); return; }
    const canvas = await view.toCanvas(2);
    canvas.toBlob((blob) => download(blob, "image/png", `${name}.png`));
  }));
})();
