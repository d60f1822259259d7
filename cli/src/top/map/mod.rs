//! The drawn map of edges: workloads in layers from left to right, arrows between them, live numbers on the arrows.
//!
//! [`place`] takes lines and a size and says what stands where; the view paints it and the mouse looks it up. It tries
//! from the richest to the sparest form and gives up where none fits: the edges are shown as a list then.
//!
//! How an arrow runs: out of the middle of the caller's right side, along the caller's own vertical track in the gap,
//! then along a row of its own, with its label, into the callee's left side.

mod canvas;
mod layers;

use crate::top::format::{bytes_rate, latency, percent, rate};
use crate::top::layout::cells_of;
use crate::top::state::Line;
use crate::top::theme::Theme;
use canvas::{Canvas, LEFT, RIGHT};
use layers::{Layered, Link, Slot, layered};
use mesh_api::WorkloadRef;
use std::collections::{BTreeMap, BTreeSet};

/// More workloads, or more edges, are never drawn.
const MOST_NODES: usize = 64;
const MOST_EDGES: usize = 160;

/// What a piece of the map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The frame of a workload's box.
    Frame,
    /// A workload's name, and one of the lines that touch it.
    Name(usize),
    /// A piece of the way of an edge: the position of its line.
    Way(usize),
    /// An edge's numbers: the position of its line.
    Label(usize),
}

/// Characters that stand together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First cell.
    pub x: u16,
    /// Row.
    pub y: u16,
    /// What stands there.
    pub text: String,
    /// What it is.
    pub part: Part,
}

/// What stands where, relative to the map's own corner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// The pieces; later ones stand on top.
    pub runs: Vec<Run>,
}

impl Map {
    /// The line that a cell of the map belongs to.
    pub fn at(&self, x: u16, y: u16) -> Option<usize> {
        let hit = |run: &&Run| run.y == y && x >= run.x && usize::from(x - run.x) < cells_of(&run.text);
        self.runs.iter().rev().find(hit).and_then(|run| match run.part {
            Part::Frame => None,
            Part::Name(line) | Part::Way(line) | Part::Label(line) => Some(line),
        })
    }
}

/// How rich a map is drawn.
#[derive(Clone, Copy, Debug)]
struct Form {
    boxes: bool,
    label: Label,
    longest_name: usize,
}

#[derive(Clone, Copy, Debug)]
enum Label {
    Full,
    Long,
    Short,
}

const FORMS: &[Form] = &[
    Form { boxes: true, label: Label::Full, longest_name: 30 },
    Form { boxes: true, label: Label::Long, longest_name: 30 },
    Form { boxes: true, label: Label::Long, longest_name: 16 },
    Form { boxes: true, label: Label::Short, longest_name: 16 },
    Form { boxes: false, label: Label::Long, longest_name: 16 },
    Form { boxes: false, label: Label::Short, longest_name: 16 },
    Form { boxes: false, label: Label::Short, longest_name: 10 },
];

struct Graph<'a> {
    nodes: Vec<&'a WorkloadRef>,
    /// Caller, callee, and the position of the line.
    edges: Vec<(usize, usize, usize)>,
    /// Workloads that call themselves, and the position of the line.
    loops: BTreeMap<usize, usize>,
    /// A line that touches each workload.
    touching: Vec<usize>,
}

/// Draws the edges into so many cells, if that can be done.
pub fn place(lines: &[Line], width: u16, height: u16, theme: Theme, namespaces: bool) -> Option<Map> {
    if lines.len() > MOST_EDGES {
        return None;
    }
    let ends: Vec<(WorkloadRef, WorkloadRef, usize)> = lines
        .iter()
        .enumerate()
        .filter_map(|(at, line)| Some((line.key.from.clone()?, crate::top::edges::workload_of(&line.key.id), at)))
        .collect();
    // In order of names, so that the map stands still while numbers change.
    let nodes: Vec<&WorkloadRef> =
        ends.iter().flat_map(|(from, to, _)| [from, to]).collect::<BTreeSet<_>>().into_iter().collect();
    if nodes.is_empty() || nodes.len() > MOST_NODES {
        return None;
    }
    let find = |workload: &WorkloadRef| nodes.binary_search(&workload).ok();
    let mut edges = Vec::new();
    let mut loops = BTreeMap::new();
    let mut touching = vec![0; nodes.len()];
    for (from, to, at) in &ends {
        let (Some(from), Some(to)) = (find(from), find(to)) else { continue };
        (touching[from], touching[to]) = (*at, *at);
        if from == to {
            loops.insert(from, *at);
        } else {
            edges.push((from, to, *at));
        }
    }
    edges.sort_unstable();
    let graph = Graph { nodes, edges, loops, touching };
    let pairs: Vec<(usize, usize)> = graph.edges.iter().map(|&(from, to, _)| (from, to)).collect();
    let layered = layered(graph.nodes.len(), &pairs);
    let size = (usize::from(width), usize::from(height));
    FORMS.iter().find_map(|form| Sheet::new(lines, &graph, &layered, *form, theme, namespaces).draw(size))
}

/// A map being made in one form.
struct Sheet<'a> {
    graph: &'a Graph<'a>,
    layered: &'a Layered,
    form: Form,
    theme: Theme,
    /// By node.
    names: Vec<String>,
    /// By edge.
    labels: Vec<String>,
    /// By slot: links at its left and right, by index, in order from top to bottom.
    arriving: Vec<Vec<usize>>,
    leaving: Vec<Vec<usize>>,
}

/// What a gap between two layers holds.
struct Gap {
    x: usize,
    width: usize,
    /// By link: the column of its vertical piece.
    tracks: BTreeMap<usize, usize>,
}

impl<'a> Sheet<'a> {
    fn new(
        lines: &'a [Line],
        graph: &'a Graph<'a>,
        layered: &'a Layered,
        form: Form,
        theme: Theme,
        namespaces: bool,
    ) -> Self {
        let name = |(node, workload): (usize, &&WorkloadRef)| {
            let name = if namespaces && !workload.namespace.is_empty() {
                format!("{}/{}", workload.namespace, workload.name)
            } else {
                workload.name.clone()
            };
            let own = graph.loops.get(&node).map(|&at| format!(" {}{}", theme.loop_mark(), rate(lines[at].row.rps)));
            format!("{}{}", theme.cut(&name, form.longest_name), own.unwrap_or_default())
        };
        let names = graph.nodes.iter().enumerate().map(name).collect();
        let labels = graph.edges.iter().map(|&(_, _, at)| label(&lines[at], form.label, theme)).collect();
        let mut arriving = vec![Vec::new(); layered.slots.len()];
        let mut leaving = vec![Vec::new(); layered.slots.len()];
        for (index, link) in layered.links.iter().enumerate() {
            arriving[link.right].push(index);
            leaving[link.left].push(index);
        }
        Self { graph, layered, form, theme, names, labels, arriving, leaving }
    }

    /// Rows that a slot takes: a row for each arrow that comes, and for each that comes back from the right.
    fn height(&self, slot: usize) -> usize {
        let arrows = self.arriving[slot].len().max(self.right_rows(slot)).max(1);
        let frame = matches!(self.layered.slots[slot], Slot::Node(_)) && self.form.boxes;
        arrows + if frame { 2 } else { 0 }
    }

    /// Rows needed at the right side: one for all arrows that leave, and one for each that comes back.
    fn right_rows(&self, slot: usize) -> usize {
        let back = self.leaving[slot].iter().filter(|link| self.layered.links[**link].back).count();
        back + usize::from(back < self.leaving[slot].len())
    }

    fn draw(mut self, (width, height): (usize, usize)) -> Option<Map> {
        let tops = self.tops(height)?;
        // Arrows come in from top to bottom in the order of where they come from.
        for links in &mut self.arriving {
            links.sort_by_key(|link| (tops[self.layered.links[*link].left], *link));
        }
        for links in &mut self.leaving {
            links.sort_by_key(|link| (tops[self.layered.links[*link].right], *link));
        }
        let rows = self.rows(&tops);
        let widths: Vec<usize> = self.layered.layers.iter().map(|slots| self.layer_width(slots)).collect();
        let (mut gaps, used) = self.gaps(&widths, &rows);
        if used > width {
            return None;
        }
        // What is left makes the arrows longer, within reason, and a margin.
        let longer = if gaps.is_empty() { 0 } else { ((width - used) / gaps.len()).min(8) };
        let margin = (width - used - longer * gaps.len()) / 2;
        let mut x = margin;
        let mut lefts = Vec::new();
        for (layer, layer_width) in widths.iter().enumerate() {
            lefts.push(x);
            x += layer_width;
            if let Some(gap) = gaps.get_mut(layer) {
                (gap.x, gap.width) = (x, gap.width + longer);
                x += gap.width;
            }
        }
        let mut map = self.paint((width, height), &tops, &rows, &lefts, &widths, &gaps);
        // In the middle of what is left below, a little above.
        let used = map.runs.iter().map(|run| run.y + 1).max().unwrap_or(0);
        let first = map.runs.iter().map(|run| run.y).min().unwrap_or(0);
        let free = u16::try_from(height).unwrap_or(u16::MAX).saturating_sub(used - first) / 3;
        for run in &mut map.runs {
            run.y = run.y - first + free;
        }
        Some(map)
    }

    fn layer_width(&self, slots: &[usize]) -> usize {
        let frame = if self.form.boxes { 4 } else { 2 };
        let cells = slots.iter().map(|&slot| match self.layered.slots[slot] {
            Slot::Node(node) => cells_of(&self.names[node]) + frame,
            Slot::Bend => 1,
        });
        cells.max().unwrap_or(0)
    }

    /// Free rows between two slots of a layer.
    fn between(&self, upper: usize, lower: usize) -> usize {
        let bend = |slot: usize| self.layered.slots[slot] == Slot::Bend;
        usize::from(self.form.boxes && !(bend(upper) && bend(lower)))
    }

    /// Rows that a layer needs.
    fn needs(&self, slots: &[usize]) -> usize {
        let gaps: usize = slots.windows(2).map(|pair| self.between(pair[0], pair[1])).sum();
        slots.iter().map(|slot| self.height(*slot)).sum::<usize>() + gaps
    }

    /// The first row of each slot, if all fit: as near to the middle of its neighbours as the order allows.
    fn tops(&self, height: usize) -> Option<Vec<usize>> {
        let layers = &self.layered.layers;
        let tallest = layers.iter().map(|slots| self.needs(slots)).max().unwrap_or(0);
        if tallest > height {
            return None;
        }
        // With room to spare, boxes stand a little further apart.
        let most = layers.iter().map(Vec::len).max().unwrap_or(1);
        let spread = if self.form.boxes && most > 1 { ((height - tallest) / most).min(2) } else { 0 };
        let height = height.min(tallest + spread * most);
        let middles = self.middles(height as f64);
        let mut tops = vec![0usize; self.layered.slots.len()];
        for slots in layers {
            // Rounding must neither overlap nor leave the screen.
            let mut free = 0;
            let mut rest = self.needs(slots);
            for (at, &slot) in slots.iter().enumerate() {
                let wished = (middles[slot] - self.height(slot) as f64 / 2.0).round().max(0.0) as usize;
                tops[slot] = wished.clamp(free, height.saturating_sub(rest).max(free));
                let gap = slots.get(at + 1).map_or(0, |next| self.between(slot, *next));
                free = tops[slot] + self.height(slot) + gap;
                rest = rest.saturating_sub(self.height(slot) + gap);
            }
        }
        Some(tops)
    }

    /// The middle of each slot, settled by going back and forth between the layers.
    fn middles(&self, height: f64) -> Vec<f64> {
        let layers = &self.layered.layers;
        let mut middles = vec![height / 2.0; self.layered.slots.len()];
        for round in 0..8 {
            let forth = round % 2 == 0;
            for step in 0..layers.len() {
                let layer = if forth { step } else { layers.len() - 1 - step };
                let slots = &layers[layer];
                let look_left = forth == (layer > 0) || layer + 1 == layers.len();
                let wishes: Vec<f64> = slots.iter().map(|&slot| self.wish(slot, look_left, &middles)).collect();
                let step = |at: usize| (self.height(slots[at]) + self.between(slots[at], slots[at + 1])) as f64;
                // Pushed down from the top and up from the bottom: the mean of both keeps order and distance.
                let (mut down, mut up) = (wishes.clone(), wishes);
                down[0] = down[0].max(0.0);
                for at in 1..slots.len() {
                    down[at] = down[at].max(down[at - 1] + step(at - 1));
                }
                for at in (0..slots.len()).rev() {
                    let limit = match at + 1 {
                        next if next < slots.len() => up[next] - step(at),
                        _ => height - self.height(slots[at]) as f64,
                    };
                    up[at] = up[at].min(limit);
                }
                for (at, &slot) in slots.iter().enumerate() {
                    middles[slot] = (down[at] + up[at]) / 2.0 + self.height(slot) as f64 / 2.0;
                }
            }
        }
        middles
    }

    /// Where a slot would begin if it had only its neighbours at one side to please.
    fn wish(&self, slot: usize, look_left: bool, middles: &[f64]) -> f64 {
        let ends: Vec<f64> = if look_left {
            self.arriving[slot].iter().map(|link| middles[self.layered.links[*link].left]).collect()
        } else {
            self.leaving[slot].iter().map(|link| middles[self.layered.links[*link].right]).collect()
        };
        let middle = if ends.is_empty() { middles[slot] } else { ends.iter().sum::<f64>() / ends.len() as f64 };
        middle - self.height(slot) as f64 / 2.0
    }

    /// By link: the rows of its left and right ends.
    fn rows(&self, tops: &[usize]) -> Vec<(usize, usize)> {
        let mut rows = vec![(0, 0); self.layered.links.len()];
        for (slot, top) in tops.iter().enumerate().take(self.layered.slots.len()) {
            let inner = self.height(slot) - if self.is_box(slot) { 2 } else { 0 };
            let top = top + usize::from(self.is_box(slot));
            let first_in = top + (inner - self.arriving[slot].len().min(inner)) / 2;
            for (at, link) in self.arriving[slot].iter().enumerate() {
                rows[*link].1 = first_in + at;
            }
            let first_out = top + (inner - self.right_rows(slot).min(inner)) / 2;
            let mut next = first_out + usize::from(self.leaves(slot));
            for link in &self.leaving[slot] {
                rows[*link].0 = if self.layered.links[*link].back {
                    next += 1;
                    next - 1
                } else {
                    first_out
                };
            }
        }
        rows
    }

    fn is_box(&self, slot: usize) -> bool {
        self.form.boxes && matches!(self.layered.slots[slot], Slot::Node(_))
    }

    /// True if an arrow leaves a slot to the right.
    fn leaves(&self, slot: usize) -> bool {
        self.leaving[slot].iter().any(|link| !self.layered.links[*link].back)
    }

    /// Links that share a track: all that leave a slot; each that comes back has its own.
    fn bundle(&self, index: usize, link: &Link) -> usize {
        if link.back { self.layered.slots.len() + index } else { link.left }
    }

    /// The gaps between layers, and the width of everything.
    fn gaps(&self, widths: &[usize], rows: &[(usize, usize)]) -> (Vec<Gap>, usize) {
        let mut gaps = Vec::new();
        let mut used: usize = widths.iter().sum();
        for slots in self.layered.layers.iter().take(widths.len().saturating_sub(1)) {
            let links: Vec<(usize, &Link)> =
                self.layered.links.iter().enumerate().filter(|(_, link)| slots.contains(&link.left)).collect();
            // Bundles by their column: one that starts on a row where another one arrives must turn before it.
            let mut bundles: BTreeMap<usize, (usize, Vec<usize>)> = BTreeMap::new();
            for (index, link) in &links {
                let (start, ends) = bundles.entry(self.bundle(*index, link)).or_insert((rows[*index].0, Vec::new()));
                *start = rows[*index].0;
                ends.push(rows[*index].1);
            }
            let mut order: Vec<usize> = Vec::new();
            let mut left: Vec<usize> = bundles.keys().copied().collect();
            while !left.is_empty() {
                let free = left.iter().position(|bundle| {
                    let ends = &bundles[bundle].1;
                    !left.iter().any(|other| other != bundle && ends.contains(&bundles[other].0))
                });
                order.push(left.remove(free.unwrap_or(0)));
            }
            let turning = |bundle: &usize| bundles[bundle].1.iter().any(|end| *end != bundles[bundle].0);
            let mut columns: BTreeMap<usize, usize> = BTreeMap::new();
            let mut next = 1;
            for bundle in &order {
                columns.insert(*bundle, next);
                next += usize::from(turning(bundle)) * 2;
            }
            let tracks = links.iter().map(|(index, link)| (*index, columns[&self.bundle(*index, link)])).collect();
            let label = links
                .iter()
                .filter(|(_, link)| matches!(self.layered.slots[link.right], Slot::Node(_)))
                .map(|(_, link)| cells_of(&self.labels[link.edge]) + 2)
                .max()
                .unwrap_or(0);
            let width = next + label + 3;
            used += width;
            gaps.push(Gap { x: 0, width, tracks });
        }
        (gaps, used)
    }

    fn paint(
        &self,
        (width, height): (usize, usize),
        tops: &[usize],
        rows: &[(usize, usize)],
        lefts: &[usize],
        widths: &[usize],
        gaps: &[Gap],
    ) -> Map {
        let mut canvas = Canvas::new(width, height);
        let mut owners: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut over = Vec::new();
        let cell = |x: usize| u16::try_from(x).unwrap_or(u16::MAX);
        for (layer, gap) in gaps.iter().enumerate() {
            for (index, track) in &gap.tracks {
                let link = &self.layered.links[*index];
                let line = self.graph.edges[link.edge].2;
                let (start, end) = rows[*index];
                let bundle = self.bundle(*index, link);
                let (x, turn, last) = (gap.x, gap.x + track, gap.x + gap.width - 1);
                // Bends are drawn through, boxes are left and reached.
                let from = if self.layered.slots[link.left] == Slot::Bend { lefts[layer] } else { x };
                canvas.across(bundle, from, turn, start);
                canvas.down(bundle, turn, start, end);
                canvas.across(bundle, turn, last, end);
                if from == x {
                    canvas.join(bundle, x, start, LEFT | RIGHT);
                }
                canvas.join(bundle, last, end, RIGHT);
                owners.extend((from..=turn).map(|at| ((at, start), line)));
                owners.extend((start.min(end)..=start.max(end)).map(|y| ((turn, y), line)));
                owners.extend((turn..=last).map(|at| ((at, end), line)));
                let arrives = matches!(self.layered.slots[link.right], Slot::Node(_));
                if arrives {
                    let text = format!(" {} ", self.labels[link.edge]);
                    let room = last - 1 - turn;
                    let at = turn + 1 + (room.saturating_sub(cells_of(&text))) / 2;
                    over.push(Run { x: cell(at), y: cell(end), text, part: Part::Label(line) });
                    if !link.back {
                        let text = self.theme.arrow_right().to_owned();
                        over.push(Run { x: cell(last), y: cell(end), text, part: Part::Way(line) });
                    }
                }
                if link.back && matches!(self.layered.slots[link.left], Slot::Node(_)) {
                    let text = self.theme.arrow_left().to_owned();
                    over.push(Run { x: cell(x), y: cell(start), text, part: Part::Way(line) });
                }
            }
        }
        let mut runs = Vec::new();
        for ((x, y), line) in owners {
            if let Some(letter) = canvas.character(x, y, self.theme.unicode) {
                runs.push(Run { x: cell(x), y: cell(y), text: letter.to_string(), part: Part::Way(line) });
            }
        }
        runs.extend(over);
        for (layer, slots) in self.layered.layers.iter().enumerate() {
            for &slot in slots {
                if let Slot::Node(node) = self.layered.slots[slot] {
                    self.paint_box(&mut runs, node, (lefts[layer], tops[slot]), (widths[layer], self.height(slot)));
                }
            }
        }
        Map { runs }
    }

    fn paint_box(&self, runs: &mut Vec<Run>, node: usize, (x, y): (usize, usize), (width, height): (usize, usize)) {
        let cell = |x: usize| u16::try_from(x).unwrap_or(u16::MAX);
        let mut put = |x: usize, y: usize, text: String, part| runs.push(Run { x: cell(x), y: cell(y), text, part });
        let [corners, sides] = self.theme.frame();
        let name = &self.names[node];
        let part = Part::Name(self.graph.touching[node]);
        if !self.form.boxes {
            for row in 0..height {
                let text = if row == (height - 1) / 2 { name.as_str() } else { "" };
                let padding = " ".repeat(width - 2 - cells_of(text));
                put(x, y + row, sides[1].to_string(), Part::Frame);
                put(x + width - 1, y + row, sides[1].to_string(), Part::Frame);
                put(x + 1, y + row, format!("{text}{padding}"), part);
            }
            return;
        }
        let border = |left: char, right: char| format!("{left}{}{right}", sides[0].to_string().repeat(width - 2));
        put(x, y, border(corners[0], corners[1]), Part::Frame);
        put(x, y + height - 1, border(corners[2], corners[3]), Part::Frame);
        for row in 1..height - 1 {
            let text = if row == (height - 1) / 2 { name.as_str() } else { "" };
            let padding = " ".repeat(width - 3 - cells_of(text));
            put(x, y + row, sides[1].to_string(), Part::Frame);
            put(x + width - 1, y + row, sides[1].to_string(), Part::Frame);
            put(x + 1, y + row, format!(" {text}{padding}"), part);
        }
    }
}

/// What stands on an arrow.
fn label(line: &Line, label: Label, theme: Theme) -> String {
    let row = &line.row;
    let mark = theme.mtls(row.mtls_rate).0;
    if row.is_tcp() {
        let bytes = bytes_rate(row.tcp_read_bytes_rate + row.tcp_write_bytes_rate);
        return match label {
            Label::Full | Label::Long => format!("{} open {bytes} {mark}", row.tcp_open_connections),
            Label::Short => format!("{} open", row.tcp_open_connections),
        };
    }
    let success = row.success_rate.map(percent).unwrap_or_default();
    match label {
        Label::Full => {
            let p99 = row.latency_p99_ms.map(latency).unwrap_or_default();
            format!("{}/s {success} p99 {p99} {mark}", rate(row.rps))
        }
        Label::Long => format!("{}/s {success} {mark}", rate(row.rps)),
        // What fails must not be seen by its colour alone.
        Label::Short if row.success_rate.is_some_and(|rate| rate < 0.995) => format!("{}/s!", rate(row.rps)),
        Label::Short => format!("{}/s", rate(row.rps)),
    }
}

#[cfg(test)]
mod tests;
