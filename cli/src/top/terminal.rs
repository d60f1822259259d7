//! The terminal, taken over and given back: after a drop or a panic it is as it was before.

use crate::error::{Context, Result};
use crossterm::cursor::Show;
use crossterm::event::{DisableMouseCapture, EnableMouseCapture};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use std::io::{IsTerminal, Stdout, stdout};
use std::sync::Once;

/// True if there is somebody to look and to type.
pub fn is_there() -> bool {
    stdout().is_terminal() && std::io::stdin().is_terminal()
}

/// The terminal in its other mode; dropping it gives the old one back.
pub struct Guard {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Guard {
    /// Takes the terminal over: raw mode, alternate screen, mouse.
    pub fn open() -> Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // First the terminal, so that the message can be read.
                restore();
                before(panic);
            }));
        });
        enable_raw_mode().during(|| "take over the terminal")?;
        // From here on a failure restores.
        let terminal = Terminal::new(CrosstermBackend::new(stdout()));
        let entered = execute!(stdout(), EnterAlternateScreen, EnableMouseCapture);
        match (terminal, entered) {
            (Ok(terminal), Ok(())) => Ok(Self { terminal }),
            (Err(cause), _) | (_, Err(cause)) => {
                restore();
                Err(cause).during(|| "take over the terminal")
            }
        }
    }

    /// Draws a frame.
    pub fn draw(&mut self, view: impl FnOnce(&mut Frame)) -> Result<()> {
        self.terminal.draw(view).map(drop).during(|| "draw on the terminal")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back; harmless if it was never taken. Nothing can be done if the terminal refuses.
fn restore() {
    let _ = execute!(stdout(), DisableMouseCapture, LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}
