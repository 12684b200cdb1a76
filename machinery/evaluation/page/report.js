"use strict";
// Shows the pairs that are looked for, a page at a time. What a model wrote only ever becomes the text of a node.
if (document.getElementById("pairs")) {
  const PAGE = 50;
  const [data, controls, search, filter, category, sort, status, list, pages, previous, next, empty] =
    ["data", "controls", "search", "filter", "category", "sort", "status", "pairs", "pages", "previous", "next", "empty"]
      .map((id) => document.getElementById(id));
  const pairs = JSON.parse(data.textContent);
  let found = pairs, start = 0, wanted = null, timer = 0;

  const fill = (node, facts) => {
    for (const place of node.querySelectorAll("[data-of]")) {
      const name = place.dataset.of, text = String(facts[name]);
      // Split at what is searched for, every second part is what was found.
      const parts = wanted && ["prompt", "text"].includes(name) ? text.split(wanted) : [text];
      parts.forEach((part, odd) => {
        if (part) (odd % 2 ? place.appendChild(document.createElement("mark")) : place).append(part);
      });
    }
  };
  const articleOf = (pair) => {
    const article = empty.content.firstElementChild.cloneNode(true);
    const answers = article.querySelector(".answers"), box = answers.firstElementChild;
    box.remove();
    fill(article, pair);
    article.id = `pair-${pair.number}`;
    article.querySelector("a").href = `#pair-${pair.number}`;
    article.querySelector("[data-of=outcome]").className = pair.kind;
    for (const answer of pair.answers) fill(answers.appendChild(box.cloneNode(true)), answer);
    return article;
  };
  const number = (count) => count.toLocaleString("en");
  const showFrom = (first) => {
    start = first;
    const end = Math.min(found.length, start + PAGE);
    list.replaceChildren(...found.slice(start, end).map(articleOf));
    status.textContent = `${number(found.length)} of ${number(pairs.length)} pairs` +
      (found.length > PAGE ? `, ${number(start + 1)} to ${number(end)} shown` : "");
    pages.hidden = found.length <= PAGE;
    previous.disabled = start === 0;
    next.disabled = end === found.length;
  };
  const choose = () => {
    const text = search.value.trim().replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
    wanted = text ? new RegExp(`(${text})`, "iu") : null;
    found = pairs.filter((pair) => (!filter.value || pair.kind === filter.value) &&
      (!category.value || pair.category === category.value) &&
      (!wanted || wanted.test(pair.prompt) || pair.answers.some((answer) => wanted.test(answer.text))));
    if (sort.value) found.sort((a, b) => (b[sort.value] ?? -1) - (a[sort.value] ?? -1));
    showFrom(0);
  };
  const turn = (by) => {
    showFrom(start + by * PAGE);
    list.firstElementChild.focus();  // which scrolls there, too
  };
  // A link to a pair leads to it on whatever page it is, and past what would hide it.
  const goToLinked = () => {
    const linked = /^#pair-(\d+)$/.exec(location.hash);
    if (!linked || linked[1] < 1 || linked[1] > pairs.length) return;
    let place = found.indexOf(pairs[linked[1] - 1]);
    if (place < 0) {
      controls.reset();
      choose();
      place = linked[1] - 1;
    }
    if (place < start || place >= start + PAGE) showFrom(place - place % PAGE);
    const article = document.getElementById(`pair-${linked[1]}`);
    article.scrollIntoView();
    article.focus({preventScroll: true});
  };
  const categories = [...new Set(pairs.map((pair) => pair.category).filter(Boolean))].sort();
  category.append(...categories.map((name) => new Option(name, name)));
  document.getElementById("by-category").hidden = categories.length < 2;
  controls.hidden = false;
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(choose, 120); });  // after typing
  previous.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  addEventListener("hashchange", goToLinked);
  choose();
  goToLinked();
}
