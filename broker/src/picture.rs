//! The impact as a picture: each key a box, its descendants one row below.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// What a box says. All of it may be chosen by others, so all of it is escaped.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub key_id: String,
    /// Empty if it is not known.
    pub name: String,
    pub lockbox: String,
    pub state: String,
    pub parent: Option<String>,
    pub relation: String,
    pub remedy: String,
    pub progress: String,
    pub consumers: Vec<String>,
}

/// One key with all its holders.
struct KeyBox<'a> {
    first: &'a Node,
    lines: Vec<String>,
    colour: &'static str,
}

const BOX_WIDTH: usize = 250;
const LINE_HEIGHT: usize = 16;
const GAP: usize = 40;
const MARGIN: usize = 20;

/// A graph for Graphviz.
pub fn dot(nodes: &[Node]) -> String {
    let boxes = boxes(nodes);
    let mut text =
        "digraph impact {\n  rankdir=TB;\n  node [shape=box, style=filled, fontname=\"monospace\"];\n".to_owned();
    for (key_id, key) in &boxes {
        let label: Vec<String> = key.lines.iter().map(|line| dot_escaped(line)).collect();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "  \"{}\" [label=\"{}\", fillcolor=\"{}\"];",
            dot_escaped(key_id),
            label.join("\\n"),
            key.colour
        );
    }
    for (key_id, key) in &boxes {
        let Some(parent) = &key.first.parent else { continue };
        let _ = writeln!(
            text,
            "  \"{}\" -> \"{}\" [label=\"{}\"];",
            dot_escaped(parent),
            dot_escaped(key_id),
            dot_escaped(&key.first.relation)
        );
    }
    text + "}\n"
}

/// A picture of its own.
pub fn svg(nodes: &[Node]) -> String {
    let boxes = boxes(nodes);
    let rows = rows(&boxes);
    let width = rows.iter().map(Vec::len).max().unwrap_or(1) * (BOX_WIDTH + GAP) + 2 * MARGIN;
    let mut places: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    let mut y = MARGIN;
    for row in &rows {
        let height = |key: &&str| boxes[*key].lines.len() * LINE_HEIGHT + 12;
        for (column, key) in row.iter().enumerate() {
            places.insert(key, (MARGIN + column * (BOX_WIDTH + GAP), y, height(key)));
        }
        y += row.iter().map(height).max().unwrap_or(0) + GAP;
    }
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{y}\" \
         font-family=\"monospace\" font-size=\"11\">\n"
    );
    for (key_id, key) in &boxes {
        draw_edge(&mut text, &places, key_id, key);
    }
    for (key_id, key) in &boxes {
        draw_box(&mut text, places[key_id.as_str()], key);
    }
    text + "</svg>\n"
}

fn draw_edge(text: &mut String, places: &BTreeMap<&str, (usize, usize, usize)>, key_id: &str, key: &KeyBox<'_>) {
    let parent = key.first.parent.as_deref().and_then(|parent| places.get(parent));
    let (Some((from_x, from_y, height)), Some((to_x, to_y, _))) = (parent, places.get(key_id)) else {
        return;
    };
    let (x1, y1) = (from_x + BOX_WIDTH / 2, from_y + height);
    let (x2, y2) = (to_x + BOX_WIDTH / 2, *to_y);
    let _ = writeln!(
        text,
        "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"#555\"/>\n\
         <text x=\"{}\" y=\"{}\" fill=\"#555\">{}</text>",
        (x1 + x2) / 2 + 4,
        (y1 + y2) / 2,
        xml_escaped(&key.first.relation)
    );
}

fn draw_box(text: &mut String, (x, y, height): (usize, usize, usize), key: &KeyBox<'_>) {
    let _ = writeln!(
        text,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDTH}\" height=\"{height}\" rx=\"4\" fill=\"{}\" stroke=\"#333\"/>",
        key.colour
    );
    for (number, line) in key.lines.iter().enumerate() {
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\">{}</text>",
            x + 6,
            y + LINE_HEIGHT * (number + 1),
            xml_escaped(line)
        );
    }
}

/// By key id, so that the picture of the same facts is the same.
fn boxes(nodes: &[Node]) -> BTreeMap<String, KeyBox<'_>> {
    let mut boxes: BTreeMap<String, KeyBox<'_>> = BTreeMap::new();
    for node in nodes {
        let key = boxes.entry(node.key_id.clone()).or_insert_with(|| KeyBox {
            first: node,
            lines: vec![node.key_id.clone()],
            colour: "#e8f5e9",
        });
        let name = match node.name.is_empty() {
            true => node.lockbox.clone(),
            false => format!("{}/{}", node.lockbox, node.name),
        };
        let (state, remedy, progress) = (&node.state, &node.remedy, &node.progress);
        key.lines.push(format!("{name}: {state}, {remedy}, {progress}"));
        key.lines
            .extend(node.consumers.iter().map(|consumer| format!("  {consumer}")));
        if node.remedy == "deep" && node.progress != "done" {
            // What is to do stands out against what is under way.
            let to_do = node.progress == "to do" || key.colour == "#ef9a9a";
            key.colour = if to_do { "#ef9a9a" } else { "#fff59d" };
        }
    }
    boxes
}

/// The keys by how many ancestors they have.
fn rows<'a>(boxes: &'a BTreeMap<String, KeyBox<'_>>) -> Vec<Vec<&'a str>> {
    let mut rows: Vec<Vec<&str>> = Vec::new();
    for key_id in boxes.keys() {
        let mut seen = BTreeSet::from([key_id.as_str()]);
        let mut at = boxes[key_id].first.parent.as_deref();
        // A cycle, which only a lie could make, ends it.
        while let Some(parent) = at.filter(|parent| boxes.contains_key(*parent)) {
            if !seen.insert(parent) {
                break;
            }
            at = boxes[parent].first.parent.as_deref();
        }
        let depth = seen.len() - 1;
        if rows.len() <= depth {
            rows.resize_with(depth + 1, Vec::new);
        }
        rows[depth].push(key_id);
    }
    rows
}

fn dot_escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn xml_escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(key_id: &str, parent: Option<&str>, progress: &str) -> Node {
        Node {
            key_id: key_id.to_owned(),
            name: "<vol>".to_owned(),
            lockbox: "<store\"1>".to_owned(),
            state: "active".to_owned(),
            parent: parent.map(str::to_owned),
            relation: "share".to_owned(),
            remedy: "deep".to_owned(),
            progress: progress.to_owned(),
            consumers: vec!["cinder/volume/1".to_owned()],
        }
    }

    #[test]
    fn descendants_stand_below_and_what_others_named_can_not_break_out() {
        let nodes = [
            node("a", None, "to do"),
            node("b", Some("a"), "done"),
            node("b", Some("a"), "done"),
        ];
        let svg = svg(&nodes);
        assert!(
            svg.contains("&lt;store&quot;1&gt;/&lt;vol&gt;: active") && !svg.contains("<store"),
            "{svg}"
        );
        assert_eq!(svg.matches("<rect").count(), 2);
        assert_eq!(svg.matches("<line").count(), 1);
        assert!(svg.contains("#ef9a9a") && svg.contains("#e8f5e9"));
        let dot = dot(&nodes);
        assert!(dot.contains("\"a\" -> \"b\" [label=\"share\"]"), "{dot}");
        assert!(dot.contains("<store\\\"1>"), "{dot}");
    }

    #[test]
    fn a_lineage_that_bites_its_tail_is_drawn_all_the_same() {
        let svg = svg(&[node("a", Some("b"), "to do"), node("b", Some("a"), "to do")]);
        assert_eq!(svg.matches("<rect").count(), 2);
    }
}
