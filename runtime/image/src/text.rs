//! Words of strangers, made fit for a message.

/// What of a stranger's words is worth repeating, in characters.
const MAX_SHOWN: usize = 300;

/// `text` shortened, and without anything that a terminal or a log reader would act on: control
/// characters, line breaks, and marks that turn the direction of what follows.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN).map(harmless).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

fn harmless(c: char) -> char {
    match c {
        _ if c.is_whitespace() => ' ',
        // Format characters of Unicode: invisible, joining, or changing the direction of the line.
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' => '\u{fffd}',
        '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => '\u{fffd}',
        _ if c.is_control() => '\u{fffd}',
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_gone_and_words_stay() {
        for (text, expect) in [
            ("denied: größer als erlaubt", "denied: größer als erlaubt"),
            ("a\r\nb\tc", "a  b c"),
            ("\u{1b}]0;title\u{7}\u{9b}31m", "\u{fffd}]0;title\u{fffd}\u{fffd}31m"),
            ("gpj\u{202e}exe", "gpj\u{fffd}exe"),
        ] {
            assert_eq!(shown(text), expect);
        }
        assert_eq!(shown(&"x".repeat(1 << 20)), "x".repeat(MAX_SHOWN) + "...");
    }

    proptest! {
        #[test]
        fn no_control_character_is_left(text in any::<String>()) {
            prop_assert!(!shown(&text).chars().any(char::is_control));
        }
    }
}
