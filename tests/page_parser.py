"""What a browser would make of a page."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects what a browser would load, and checks that elements close in order."""

    void = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self, html):
        super().__init__()
        self.loaded, self.scripts, self.ids, self.open, self.text = [], 0, [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.scripts += tag == "script" or any(name.startswith("on") for name in attributes)
        self.loaded += [v for n, v in attributes.items() if n in ("src", "href", "xlink:href", "data", "srcset") and v]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
