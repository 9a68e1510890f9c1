"""What a run left, as a page to look at: read from its folder, drawn as HTML and SVG without anything from outside."""
