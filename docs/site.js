// What axe asks of pages: a name for the search box; code and tables that the keyboard can scroll.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
addEventListener("load", () => {
  const wide = ".highlight-ipynb, .jp-OutputArea-output, .jp-RenderedHTMLCommon, .md-typeset__scrollwrap";
  for (const part of document.querySelectorAll(wide)) part.tabIndex = 0;
});
