//! Tables and lists that fit the terminal.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Width};

use super::{Output, Style, plain};

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    right: bool,
    whole: bool,
}

/// Text that may wrap.
pub const fn text(title: &'static str) -> Column {
    Column { title, right: false, whole: false }
}

/// Text that stays on one line: names, addresses.
pub const fn whole(title: &'static str) -> Column {
    Column { title, right: false, whole: true }
}

/// Numbers.
pub const fn number(title: &'static str) -> Column {
    Column { title, right: true, whole: true }
}

/// A table without borders. Rows hold plain text, or text with a style.
#[derive(Debug)]
pub struct Table<'o> {
    output: &'o Output,
    columns: Vec<Column>,
    rows: Vec<Vec<(String, Option<Style>)>>,
}

impl<'o> Table<'o> {
    /// With these columns.
    pub fn new(output: &'o Output, columns: &[Column]) -> Self {
        Self { output, columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row of plain cells.
    pub fn row<I: IntoIterator<Item = S>, S: Into<String>>(&mut self, cells: I) {
        self.styled(cells.into_iter().map(|cell| (cell.into(), None)));
    }

    /// Adds a row whose cells may be emphasised.
    pub fn styled<I: IntoIterator<Item = (String, Option<Style>)>>(&mut self, cells: I) {
        self.rows.push(cells.into_iter().map(|(cell, style)| (plain(&cell).into_owned(), style)).collect());
    }

    /// The table, or `empty` if there are no rows.
    pub fn render(&self, empty: &str) -> String {
        if self.rows.is_empty() {
            return empty.to_owned();
        }
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING).force_no_tty();
        if let Some(width) = self.output.width {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width.max(40));
        }
        if self.output.colour {
            table.enforce_styling();
        }
        table.set_header(self.columns.iter().map(|column| {
            let cell = Cell::new(column.title).add_attribute(Attribute::Bold);
            if column.right { cell.set_alignment(CellAlignment::Right) } else { cell }
        }));
        for row in &self.rows {
            table.add_row(row.iter().map(|(text, style)| {
                let cell = Cell::new(text);
                style.map_or(cell.clone(), |style| styled(cell, style))
            }));
        }
        for (index, column) in self.columns.iter().enumerate() {
            let Some(shown) = table.column_mut(index) else { continue };
            shown.set_padding((0, 2));
            if column.right {
                shown.set_cell_alignment(CellAlignment::Right);
            }
            if column.whole {
                let longest =
                    self.rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.0.chars().count());
                let longest = longest.max().unwrap_or(0).max(column.title.len());
                let width = u16::try_from(longest + 2).unwrap_or(u16::MAX);
                shown.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
            }
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

fn styled(cell: Cell, style: Style) -> Cell {
    match style {
        Style::Bold => cell.add_attribute(Attribute::Bold),
        Style::Dim => cell.add_attribute(Attribute::Dim),
        Style::Good => cell.fg(Color::DarkGreen),
        Style::Warning => cell.fg(Color::DarkYellow),
        Style::Bad => cell.fg(Color::DarkRed),
    }
}

/// Pairs of a word and what it is, aligned, wrapped with a hanging indent.
#[derive(Debug)]
pub struct Facts<'o> {
    output: &'o Output,
    rows: Vec<(String, String)>,
}

impl<'o> Facts<'o> {
    /// None yet.
    pub fn new(output: &'o Output) -> Self {
        Self { output, rows: Vec::new() }
    }

    /// Adds one, unless there is nothing to say.
    pub fn add(&mut self, word: &str, what: impl Into<String>) -> &mut Self {
        let what = what.into();
        if !what.is_empty() {
            self.rows.push((word.to_owned(), plain(&what).into_owned()));
        }
        self
    }

    /// All of them, two columns in.
    pub fn render(&self) -> String {
        let widest = self.rows.iter().map(|(word, _)| word.len()).max().unwrap_or(0);
        let indent = widest + 4;
        let lines = self.rows.iter().map(|(word, what)| {
            let word = self.output.paint(Style::Dim, &format!("{word:widest$}"));
            format!("  {word}  {}", wrap(what, indent, self.output.width))
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Breaks text at spaces so that it fits; lines after the first are indented.
pub fn wrap(text: &str, indent: usize, width: Option<u16>) -> String {
    let Some(width) = width else { return text.to_owned() };
    let room = usize::from(width).saturating_sub(indent).max(20);
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines.join(&format!("\n{}", " ".repeat(indent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(width: Option<u16>) -> Output {
        Output { json: false, colour: false, width }
    }

    #[test]
    fn tables_fit_and_names_stay_whole() {
        let output = output(Some(60));
        let mut table = Table::new(&output, &[whole("NAME"), text("WHY"), number("BYTES")]);
        table.row(["a-rather-long-name", "a sentence that is too long for one line of the table", "12 kB"]);
        table.row(["b", "", "1 B"]);
        let text = table.render("none");
        assert!(text.lines().all(|line| line.len() <= 60), "{text}");
        assert!(text.contains("a-rather-long-name"), "{text}");
        assert!(text.lines().nth(1).unwrap().contains("12 kB"), "{text}");
        assert_eq!(Table::new(&output, &[text_column()]).render("none"), "none");
    }

    fn text_column() -> Column {
        text("X")
    }

    #[test]
    fn facts_are_aligned_and_wrapped() {
        let output = output(Some(40));
        let mut facts = Facts::new(&output);
        facts.add("name", "db").add("detail", "one two three four five six seven eight").add("empty", "");
        assert_eq!(
            facts.render(),
            "  name    db\n  detail  one two three four five six\n          seven eight"
        );
    }
}
