// What the site's charts share; knows no page.
"use strict";
const Chart = {
  // The series by their place; each has a symbol or a group's name besides, for who sees no colours.
  COLOURS: [1, 2, 3, 4, 5, 6].map((i) => `var(--series-${i})`),
  percent: (value) => `${(100 * value).toFixed(1)}%`,

  // Plot names its marks without saying what they are: a name alone is no role, and is not read.
  spoken(plot) {
    for (const part of plot.querySelectorAll("[aria-label]:not([role])")) part.setAttribute("role", part.tagName === "g" ? "group" : "img");
    return plot;
  },
};
