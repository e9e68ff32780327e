"""Reads a report's page as a browser would: its tables by id, its other text, and what it would load."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """tables: rows of cells by id. text: all text outside of tables. loaded: values of src, href, poster."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.text, self.loaded, self._cell = "", [], False
        self._table: list[list[str]] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self.loaded += [attributes[name] for name in ("src", "href", "poster") if name in attributes]
        if tag == "table":
            self._table = self.tables.setdefault(attributes.get("id", "clips"), [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th") and self._table is not None:
            self._table[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")
        self._table = None if tag == "table" else self._table

    def handle_data(self, data):
        if self._cell and self._table is not None:
            self._table[-1][-1] += data
        elif self._table is None:
            self.text += data
