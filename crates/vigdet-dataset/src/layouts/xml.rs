//! XML: small helpers over roxmltree, and escaping.

use anyhow::{Context, Result};
use roxmltree::Node;
use std::io::Read;
use std::path::Path;

/// The text of the first child element of this name.
pub(super) fn text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(node, name).and_then(|child| child.text()).map(str::trim)
}

/// The first child element of this name.
pub(super) fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// A number in a child element.
pub(super) fn number(node: Node<'_, '_>, name: &str) -> Result<f64> {
    let text = text(node, name).with_context(|| format!("<{}> has no <{name}>", node.tag_name().name()))?;
    finite(text).with_context(|| format!("<{name}>"))
}

/// A number in an attribute.
pub(super) fn attribute(node: Node<'_, '_>, name: &str) -> Result<f64> {
    let text = node.attribute(name).with_context(|| format!("<{}> has no `{name}`", node.tag_name().name()))?;
    finite(text).with_context(|| format!("`{name}`"))
}

pub(super) fn finite(text: &str) -> Result<f64> {
    let value = text.trim().parse().ok().filter(|value: &f64| value.is_finite());
    value.with_context(|| format!("`{}` is not a number", text.trim()))
}

/// Text for an element or an attribute.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Whether a file's first element has this name: only its beginning is read.
pub(super) fn begins_with(file: &Path, name: &str) -> bool {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(4096).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    let element = text.match_indices('<').map(|(at, _)| &text[at + 1..]).find(|rest| !rest.starts_with(['?', '!']));
    read.is_ok()
        && element.is_some_and(|rest| {
            rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(|c: char| c == '>' || c.is_whitespace()))
        })
}

/// The text of a file, without a byte-order mark.
pub(super) fn read(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", file.display()))?;
    Ok(text.strip_prefix('\u{FEFF}').map(str::to_owned).unwrap_or(text))
}
