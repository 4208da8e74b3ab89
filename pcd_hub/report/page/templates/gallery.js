"use strict";
const table = document.getElementById("weights");
if (table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const text = document.getElementById("filter");
  const license = document.getElementById("license");
  const count = document.getElementById("count");

  const compare = (one, other) => {
    if (one === "" || other === "") return (one === "") - (other === "");
    const numbers = [Number(one), Number(other)];
    return numbers.some(Number.isNaN) ? one.localeCompare(other) : numbers[0] - numbers[1];
  };

  const sort = (column) => {
    const descending = heads[column].getAttribute("aria-sort") === "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const known = value(a) !== "" && value(b) !== "";  // what is not known stays last
      return compare(value(a), value(b)) * (descending && known ? -1 : 1);
    });
    body.append(...rows);
  };

  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of body.rows) {
      const found = words.every((word) => row.dataset.text.toLowerCase().includes(word));
      row.hidden = !found || (license.value !== "" && row.dataset.license !== license.value);
      document.getElementById(row.dataset.card).hidden = row.hidden;
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${body.rows.length} weights`;
  };

  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    button.disabled = false;
    button.addEventListener("click", () => sort(column));
  });
  text.addEventListener("input", filter);
  license.addEventListener("change", filter);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("filters").hidden = false;
}
