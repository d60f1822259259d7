//! A directed graph in layers from left to right, as Sugiyama, Tagawa and Toda described it (1981): turn edges round
//! until there is no cycle, give every node a layer after all that call it, break long edges at each layer they pass,
//! and order layers so that few edges cross. Pure, and the same for the same graph.

/// A place in a layer: a node, or where a long edge passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// A node.
    Node(usize),
    /// An edge on its way.
    Bend,
}

/// A piece of an edge, from one layer to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The edge it belongs to.
    pub(super) edge: usize,
    /// The slot at its left.
    pub(super) left: usize,
    /// The slot at its right.
    pub(super) right: usize,
    /// The edge runs from right to left.
    pub(super) back: bool,
}

/// The result.
#[derive(Clone, Debug, Default)]
pub(super) struct Layered {
    /// What stands where.
    pub(super) slots: Vec<Slot>,
    /// Slots by layer, from top to bottom.
    pub(super) layers: Vec<Vec<usize>>,
    /// Pieces of edges.
    pub(super) links: Vec<Link>,
}

/// Rounds of reordering; few graphs improve after the first ones.
const ROUNDS: usize = 12;

/// Lays out `nodes` nodes; edges are pairs of different nodes.
pub(super) fn layered(nodes: usize, edges: &[(usize, usize)]) -> Layered {
    let back = back_edges(nodes, edges);
    let forward: Vec<(usize, usize)> =
        edges.iter().zip(&back).map(|(&(from, to), &back)| if back { (to, from) } else { (from, to) }).collect();
    let layer_of = longest_paths(nodes, &forward);
    let count = layer_of.iter().max().map_or(0, |last| last + 1);
    let mut out = Layered { layers: vec![Vec::new(); count], ..Layered::default() };
    for (node, &layer) in layer_of.iter().enumerate() {
        out.slots.push(Slot::Node(node));
        out.layers[layer].push(node);
    }
    for (edge, &(from, to)) in forward.iter().enumerate() {
        let mut left = from;
        for layer in layer_of[from] + 1..layer_of[to] {
            let right = out.slots.len();
            out.slots.push(Slot::Bend);
            out.layers[layer].push(right);
            out.links.push(Link { edge, left, right, back: back[edge] });
            left = right;
        }
        out.links.push(Link { edge, left, right: to, back: back[edge] });
    }
    reorder(&mut out);
    out
}

/// Which edges to turn round so that no cycle is left: those that lead back to where a walk came from.
fn back_edges(nodes: usize, edges: &[(usize, usize)]) -> Vec<bool> {
    let mut called = vec![0usize; nodes];
    edges.iter().for_each(|&(_, to)| called[to] += 1);
    // Walks begin where traffic begins.
    let mut starts: Vec<usize> = (0..nodes).collect();
    starts.sort_by_key(|&node| (called[node] > 0, node));
    let mut back = vec![false; edges.len()];
    let (mut seen, mut on_way) = (vec![false; nodes], vec![false; nodes]);
    for start in starts {
        let mut way: Vec<(usize, usize)> = Vec::new();
        if !seen[start] {
            (seen[start], on_way[start]) = (true, true);
            way.push((start, 0));
        }
        while let Some((node, next)) = way.last_mut() {
            let (here, edge) = (*node, *next);
            if edge == edges.len() {
                on_way[here] = false;
                way.pop();
                continue;
            }
            *next += 1;
            let (from, to) = edges[edge];
            if from != here {
                continue;
            }
            if on_way[to] {
                back[edge] = true;
            } else if !seen[to] {
                (seen[to], on_way[to]) = (true, true);
                way.push((to, 0));
            }
        }
    }
    back
}

/// Each node's layer: one more than the last of its callers; who is called by nobody stands just before the first
/// it calls.
fn longest_paths(nodes: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut layer = vec![0usize; nodes];
    // Without cycles this settles after at most as many rounds as there are nodes.
    for _ in 0..nodes {
        let mut changed = false;
        for &(from, to) in edges {
            if layer[to] <= layer[from] {
                layer[to] = layer[from] + 1;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    for node in 0..nodes {
        let is_called = edges.iter().any(|&(_, to)| to == node);
        let first = edges.iter().filter(|&&(from, _)| from == node).map(|&(_, to)| layer[to]).min();
        if let (false, Some(first)) = (is_called, first) {
            layer[node] = first - 1;
        }
    }
    layer
}

/// Orders each layer by where its neighbours stand, back and forth, and keeps the order with the fewest crossings.
fn reorder(out: &mut Layered) {
    let mut best = (crossings(out), out.layers.clone());
    for round in 0..ROUNDS {
        let forth = round % 2 == 0;
        let count = out.layers.len();
        for step in 1..count {
            let layer = if forth { step } else { count - 1 - step };
            let beside = if forth { layer - 1 } else { layer + 1 };
            let mut place = vec![None; out.slots.len()];
            out.layers[beside].iter().enumerate().for_each(|(at, &slot)| place[slot] = Some(at as f64));
            let mut wishes: Vec<(f64, usize)> = Vec::new();
            for (at, &slot) in out.layers[layer].iter().enumerate() {
                let ends = out.links.iter().filter_map(|link| match (forth, link.left == slot, link.right == slot) {
                    (true, _, true) => place[link.left],
                    (false, true, _) => place[link.right],
                    _ => None,
                });
                let (sum, n) = ends.fold((0.0, 0.0), |(sum, n), end| (sum + end, n + 1.0));
                wishes.push((if n > 0.0 { sum / n } else { at as f64 }, slot));
            }
            wishes.sort_by(|a, b| a.0.total_cmp(&b.0));
            out.layers[layer] = wishes.into_iter().map(|(_, slot)| slot).collect();
        }
        let now = crossings(out);
        if now < best.0 {
            best = (now, out.layers.clone());
        }
    }
    out.layers = best.1;
}

/// How many pairs of links cross.
fn crossings(out: &Layered) -> usize {
    let mut place = vec![(0, 0); out.slots.len()];
    for (layer, slots) in out.layers.iter().enumerate() {
        slots.iter().enumerate().for_each(|(at, &slot)| place[slot] = (layer, at));
    }
    let mut count = 0;
    for (index, a) in out.links.iter().enumerate() {
        for b in &out.links[index + 1..] {
            let ((layer_a, left_a), (layer_b, left_b)) = (place[a.left], place[b.left]);
            let (right_a, right_b) = (place[a.right].1, place[b.right].1);
            if layer_a == layer_b && ((left_a < left_b && right_a > right_b) || (left_a > left_b && right_a < right_b))
            {
                count += 1;
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layers(nodes: usize, edges: &[(usize, usize)]) -> Vec<Vec<usize>> {
        let out = layered(nodes, edges);
        out.layers
            .iter()
            .map(|slots| {
                let node = |slot: &usize| match out.slots[*slot] {
                    Slot::Node(node) => Some(node),
                    Slot::Bend => None,
                };
                slots.iter().filter_map(node).collect()
            })
            .collect()
    }

    #[test]
    fn callers_stand_before_those_they_call() {
        let mut shop = layers(5, &[(0, 1), (1, 2), (1, 3), (1, 4)]);
        shop[2].sort_unstable();
        assert_eq!(shop, [vec![0], vec![1], vec![2, 3, 4]]);
        assert_eq!(layers(4, &[(0, 1), (1, 2), (3, 2)]), [vec![0], vec![1, 3], vec![2]], "3 stands just before 2");
    }

    #[test]
    fn a_cycle_has_an_edge_back() {
        let out = layered(3, &[(0, 1), (1, 2), (2, 1)]);
        assert_eq!(out.links.iter().map(|link| link.back).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(layers(2, &[(0, 1), (1, 0)]).len(), 2);
    }

    #[test]
    fn long_edges_bend_and_crossings_are_undone() {
        let out = layered(4, &[(0, 1), (1, 2), (2, 3), (0, 3)]);
        assert_eq!(out.slots.iter().filter(|slot| **slot == Slot::Bend).count(), 2);
        assert_eq!(crossings(&layered(4, &[(0, 3), (1, 2)])), 0);
    }

    proptest! {
        #[test]
        fn every_link_goes_one_layer_to_the_right(edges in proptest::collection::vec((0usize..9, 0usize..9), 0..30)) {
            let mut edges: Vec<_> = edges.into_iter().filter(|(a, b)| a != b).collect();
            edges.sort_unstable();
            edges.dedup();
            let out = layered(9, &edges);
            let layer = |slot| out.layers.iter().position(|slots| slots.contains(&slot)).unwrap();
            for link in &out.links {
                prop_assert_eq!(layer(link.left) + 1, layer(link.right));
            }
            prop_assert_eq!(out.layers.iter().map(Vec::len).sum::<usize>(), out.slots.len());
        }
    }
}
