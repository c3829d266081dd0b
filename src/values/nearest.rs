//! Which known word was probably meant.

/// Longer than any word of ours.
const LONGEST: usize = 65;

/// The known word that is like `found` but for few letters and their case.
pub fn nearest<'w>(found: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let found = found.chars().take(LONGEST).collect::<String>().to_lowercase();
    let all = known.into_iter().map(|word| (distance(&found, &word.to_lowercase()), word));
    all.filter(|(distance, word)| *distance <= 1 + word.len() / 5).min().map(|(_, word)| word)
}

/// Levenshtein's. Both words are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_meant_where_few_letters_differ() {
        let known = ["hostnames", "rules", "tls"];
        for (found, meant) in [
            ("hostname", Some("hostnames")),
            ("Rules", Some("rules")),
            ("tsl", None),
            ("tl", Some("tls")),
            ("rulez", Some("rules")),
            ("backends", None),
            ("", None),
        ] {
            assert_eq!(nearest(found, known), meant, "{found}");
        }
        assert_eq!(nearest(&"rules".repeat(100_000), known), None);
    }
}
