//! Lines drawn with box characters. Lines of one bundle join where they meet; of two bundles that cross, the
//! horizontal one is interrupted, so that a crossing never looks like a junction.

/// Directions in which a cell is connected.
pub(super) const UP: u8 = 1;
/// Downwards.
pub(super) const DOWN: u8 = 2;
/// To the left.
pub(super) const LEFT: u8 = 4;
/// To the right.
pub(super) const RIGHT: u8 = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    ways: u8,
    bundle: usize,
}

/// Cells and how they are connected.
#[derive(Clone, Debug)]
pub(super) struct Canvas {
    width: usize,
    cells: Vec<Cell>,
}

impl Canvas {
    /// An empty one.
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self { width, cells: vec![Cell::default(); width * height] }
    }

    /// Draws a horizontal line of a bundle, both ends included.
    pub(super) fn across(&mut self, bundle: usize, from: usize, to: usize, y: usize) {
        for x in from..=to {
            let ways = if x > from { LEFT } else { 0 } | if x < to { RIGHT } else { 0 };
            self.join(bundle, x, y, ways);
        }
    }

    /// Draws a vertical line of a bundle, both ends included.
    pub(super) fn down(&mut self, bundle: usize, x: usize, from: usize, to: usize) {
        let (from, to) = (from.min(to), from.max(to));
        for y in from..=to {
            let ways = if y > from { UP } else { 0 } | if y < to { DOWN } else { 0 };
            self.join(bundle, x, y, ways);
        }
    }

    /// Connects a cell of a bundle in more directions.
    pub(super) fn join(&mut self, bundle: usize, x: usize, y: usize, ways: u8) {
        let Some(cell) = (x < self.width).then(|| self.cells.get_mut(y * self.width + x)).flatten() else { return };
        let (vertical, horizontal) = (UP | DOWN, LEFT | RIGHT);
        if cell.ways == 0 || cell.bundle == bundle {
            (cell.ways, cell.bundle) = (cell.ways | ways, bundle);
        } else if ways & vertical != 0 && cell.ways & vertical == 0 {
            // Ours is the vertical one of a crossing.
            (cell.ways, cell.bundle) = (ways, bundle);
        } else if ways & horizontal == 0 || cell.ways & horizontal != 0 {
            cell.ways |= ways;
        }
    }

    /// The character at a place; none where nothing was drawn.
    pub(super) fn character(&self, x: usize, y: usize, unicode: bool) -> Option<char> {
        let ways = self.cells.get(y * self.width + x)?.ways;
        let (up, down, left, right) = (ways & UP != 0, ways & DOWN != 0, ways & LEFT != 0, ways & RIGHT != 0);
        if !unicode {
            return match (up || down, left || right) {
                (false, false) => None,
                (true, false) => Some('|'),
                (false, true) => Some('-'),
                (true, true) => Some('+'),
            };
        }
        Some(match (up, down, left, right) {
            (false, false, false, false) => return None,
            (false, false, _, _) => '─',
            (_, _, false, false) => '│',
            (true, true, false, true) => '├',
            (true, true, true, false) => '┤',
            (false, true, true, true) => '┬',
            (true, false, true, true) => '┴',
            (true, true, true, true) => '┼',
            (false, true, false, true) => '╭',
            (false, true, true, false) => '╮',
            (true, false, false, true) => '╰',
            (true, false, true, false) => '╯',
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(canvas: &Canvas) -> Vec<String> {
        let height = canvas.cells.len() / canvas.width;
        let line = |y| (0..canvas.width).map(|x| canvas.character(x, y, true).unwrap_or(' ')).collect();
        (0..height).map(line).collect()
    }

    #[test]
    fn lines_of_a_bundle_join_and_others_cross() {
        let mut canvas = Canvas::new(7, 3);
        canvas.across(1, 0, 2, 1);
        canvas.down(1, 2, 0, 2);
        canvas.across(1, 2, 6, 0);
        canvas.across(1, 2, 6, 2);
        canvas.down(2, 4, 0, 2);
        assert_eq!(text(&canvas), ["  ╭─│──", "──┤ │  ", "  ╰─│──"]);
    }
}
