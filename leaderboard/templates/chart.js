// What the site's charts share; knows no page.
"use strict";
const Chart = {
  // The series by their place; each has a symbol or a group's name besides, for who sees no colours.
  COLOURS: [1, 2, 3, 4, 5, 6].map((i) => `var(--series-${i})`),
  // As Python rounds, which the tables' cells are written by: a half goes to the even digit. Of numbers with a half of a
  // tenth those alone are halves in binary too that end in .25 or .75; of these toFixed has the second right.
  percent(value) {
    const x = 100 * value;
    return `${((4 * x) % 4 === 1 ? x - 0.05 : x).toFixed(1)}%`;
  },
  whole: (x) => (x % 1 === 0.5 && Math.floor(x) % 2 === 0 ? Math.floor(x) : Math.round(x)),
  // A part is never shown as the whole, nor as nothing.
  share: (value) => (value === 1 ? "100%" : value > 0 && value < 0.001 ? "under 0.1%" : Chart.percent(value < 1 ? Math.min(0.999, value) : value)),

  // Plot names its marks without saying what they are: a name alone is no role, and is not read.
  spoken(plot) {
    for (const part of plot.querySelectorAll("[aria-label]:not([role])")) part.setAttribute("role", part.tagName === "g" ? "group" : "img");
    return plot;
  },
};
