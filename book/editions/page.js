// What of a page goes into the printed book: everything open, links that lead to other pages of the book, names that no
// other page has; its title and the names and titles of its sections. Called with the page's place in the book and the places of all pages, as addresses without a fragment.
({ place, places }) => {
  const article = document.querySelector("article.bd-article");
  for (const node of article.querySelectorAll(
    "script, noscript, .headerlink, .viewcode-link, .copybtn, .toggle-button, .lf-controls, .lf-buttons, .provenance, div.cell summary",
  ))
    node.remove();
  for (const folded of article.querySelectorAll("details")) folded.replaceWith(...folded.childNodes);
  for (const node of article.querySelectorAll(".toggle-hidden, .toggle")) node.classList.remove("toggle-hidden", "toggle");

  const prefix = `p${place}-`;
  for (const node of article.querySelectorAll("[id]")) node.id = prefix + node.id;
  for (const node of article.querySelectorAll("svg, svg *"))
    for (const { name, value } of [...node.attributes])
      if (name !== "id" && /url\(#|^#/.test(value) && (name === "href" || name === "xlink:href" || value.includes("url(#")))
        node.setAttribute(name, value.replace(/#(?=[A-Za-z_])/g, `#${prefix}`));
  for (const link of article.querySelectorAll("a[href]")) {
    const [page, fragment] = new URL(link.getAttribute("href"), location.href).href.split("#");
    if (page in places) link.setAttribute("href", fragment ? `#p${places[page]}-${fragment}` : `#p${places[page]}`);
    else if (page.startsWith("file:")) link.removeAttribute("href"); // source files and indices stay on the site
  }
  for (const image of article.querySelectorAll("img")) image.src = image.src;
  const words = node => node.textContent.trim().replace(/\s+/g, " ");
  return {
    title: words(article.querySelector("h1")),
    inside: article.innerHTML,
    sections: [...article.querySelectorAll("section[id] > h2")].map(node => [node.parentNode.id, words(node)]),
  };
};
