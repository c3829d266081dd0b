//! The tables of docs/expressions.md, made of the tables of the code.

use std::fmt::Write as _;

use super::check::{MACROS, MAX_PATTERNS};
use super::environment::{ANSWER, ASKED_BODY, Content, FAILURE, Field, REQUEST, Variable};
use super::functions::{FUNCTIONS, Function};
use super::{MAX_DEPTH, MAX_NODES, MAX_SOURCE, MAX_STEPS};

const BEGIN: &str =
    "<!-- from here on made of the code: UPDATE_GOLDEN=1 cargo test --lib expression::docs -->\n";

/// All that expressions may name, and their limits.
pub fn reference() -> String {
    let mut text = format!("{BEGIN}\n## Variables\n\n| name | type | is |\n| --- | --- | --- |\n");
    variables(REQUEST.variables, &mut text);
    text +=
        "\nWhere a request is changed (`request`), besides:\n\n| name | type | is |\n| --- | --- | --- |\n";
    variables(&[ASKED_BODY], &mut text);
    text +=
        "\nWhere an answer is changed (`response`), besides:\n\n| name | type | is |\n| --- | --- | --- |\n";
    variables(&[ANSWER], &mut text);
    text += "\n### In `errors`\n\nThere, `request` is what is still known of it:\n\n| name | type | is |\n| --- | --- | --- |\n";
    variables(FAILURE.variables, &mut text);
    text += "\n## Macros\n\n| macro | gives |\n| --- | --- |\n";
    for (form, help) in MACROS {
        writeln!(text, "| `{form}` | {help} |").expect("text takes all");
    }
    text += "\n## Functions\n\n| function | takes and gives | is |\n| --- | --- | --- |\n";
    for function in FUNCTIONS {
        let forms: Vec<_> = forms(function).collect();
        writeln!(text, "| `{}` | {} | {} |", function.name, forms.join("<br>"), function.help)
            .expect("text takes all");
    }
    let limits = [
        ("bytes of an expression", MAX_SOURCE),
        ("parts of an expression (names, literals, operators, calls)", MAX_NODES),
        ("depth of nesting", MAX_DEPTH),
        ("patterns of an expression", MAX_PATTERNS),
        (
            "steps of one evaluation (a part evaluated, an element looked at, 16 bytes read or made)",
            MAX_STEPS,
        ),
    ];
    text += "\n## Limits\n\n| what | at most |\n| --- | --- |\n";
    for (what, most) in limits {
        writeln!(text, "| {what} | {most} |").expect("text takes all");
    }
    text
}

fn variables(variables: &[Variable], text: &mut String) {
    let mut line = |name: String, field: &Field| {
        writeln!(text, "| `{name}` | {} | {} |", field.kind, field.help).expect("text takes all");
    };
    for variable in variables {
        match &variable.content {
            Content::Value(field) => line(variable.name.to_owned(), field),
            Content::Record(fields) => {
                fields.iter().for_each(|field| line(format!("{}.{}", variable.name, field.name), field));
            }
        }
    }
}

fn forms(function: &Function) -> impl Iterator<Item = String> {
    function.forms.iter().flat_map(|form| {
        let kinds: Vec<_> = form.0.iter().map(ToString::to_string).collect();
        let global =
            function.is_global().then(|| format!("`{}({})` → {}", function.name, kinds.join(", "), form.1));
        let method = function
            .is_method()
            .then(|| format!("`{}.{}({})` → {}", kinds[0], function.name, kinds[1..].join(", "), form.1));
        [global, method].into_iter().flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_expressions_has_every_variable_and_function() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/expressions.md");
        let page = std::fs::read_to_string(file).expect("the page exists");
        let (words, made) = page.split_at(page.find(BEGIN).expect("the mark stands in it"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(file, format!("{words}{}", reference())).expect("written");
            return;
        }
        assert!(
            made == reference(),
            "docs/expressions.md is out of date: UPDATE_GOLDEN=1 cargo test --lib expression::docs"
        );
    }
}
