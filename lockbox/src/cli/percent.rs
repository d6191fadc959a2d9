//! How far a tool is, as it prints it.
//!
//! | prints | as |
//! |---|---|
//! | `qemu-img convert -p` | `    (12.34/100%)\r` |
//! | `cryptsetup reencrypt` | `Progress:  12.3%, ETA 00m07s, ...` |
//! | `pv`, `rsync` | ` 12% ` |

/// Finds percentages in a stream of bytes, wherever it is cut into pieces: whole numbers of 0 to 100, rounded down.
#[derive(Debug, Default)]
pub(super) struct Percentages {
    state: State,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// No number has begun.
    #[default]
    Outside,
    /// Digits before a point.
    Whole(u32),
    /// After the point, with what stood before it.
    Fraction(u32),
    /// After `12.34/`: how much there was before it, and of how much so far.
    Of(u32, u32),
    /// A number that is none, such as 1.2.3, until something else than digits, points and slashes comes.
    Spoilt,
}

impl Percentages {
    /// The last percentage that ends in this piece.
    pub(super) fn read(&mut self, piece: &[u8]) -> Option<u32> {
        let mut last = None;
        for byte in piece {
            last = self.next(*byte).or(last);
        }
        last
    }

    fn next(&mut self, byte: u8) -> Option<u32> {
        let digit = char::from(byte).to_digit(10);
        let before = std::mem::take(&mut self.state);
        self.state = match (before, byte, digit) {
            (State::Outside, _, Some(digit)) => State::Whole(digit),
            (State::Whole(number), _, Some(digit)) => State::Whole(longer(number, digit)),
            (State::Whole(number), b'.', _) => State::Fraction(number),
            (State::Fraction(_) | State::Of(..) | State::Spoilt, b'.', _) | (State::Spoilt, _, Some(_)) => {
                State::Spoilt
            }
            (State::Fraction(number), _, Some(_)) => State::Fraction(number),
            (State::Whole(number) | State::Fraction(number), b'/', _) => State::Of(number, 0),
            (_, b'/', _) => State::Spoilt,
            (State::Of(number, of), _, Some(digit)) => State::Of(number, longer(of, digit)),
            (State::Whole(number) | State::Fraction(number) | State::Of(number, 100), b'%', _) if number <= 100 => {
                return Some(number);
            }
            _ => State::Outside,
        };
        None
    }
}

/// A number with one more digit. More than 100 is no percentage, however much it is.
fn longer(number: u32, digit: u32) -> u32 {
    number.saturating_mul(10).saturating_add(digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pieces: &[&str]) -> Vec<u32> {
        let mut percentages = Percentages::default();
        let read = |piece: &&str| percentages.read(piece.as_bytes());
        pieces.iter().filter_map(read).collect()
    }

    #[test]
    fn finds_what_qemu_img_prints() {
        let printed = [
            "    (0.00/100%)\r",
            "    (12.99/100%)\r",
            "    (100.00/100%)\r    (100.00/100%)\r\n",
        ];
        assert_eq!(all(&printed), [0, 12, 100]);
    }

    #[test]
    fn finds_what_cryptsetup_prints() {
        let printed = [
            "Resuming LUKS reencryption in forced offline mode.\n",
            "Progress:  78.0%, ETA 00m00s,  700 MiB written, speed 689.2 MiB/s\n",
            "Finished, time 00m01s,  897 MiB written, speed 718.6 MiB/s\n",
        ];
        assert_eq!(all(&printed), [78]);
    }

    #[test]
    fn finds_what_pv_and_rsync_print() {
        let printed = [
            "3.00MiB 0:00:03 [1.00MiB/s] [==>       ] 30% ETA 0:00:07\r",
            "      1,238,099 100%  146.38kB/s    0:00:08  (xfr#5, to-chk=169/396)\n",
        ];
        assert_eq!(all(&printed), [30, 100]);
    }

    #[test]
    fn a_percentage_may_come_in_pieces() {
        let printed = "(7.50/100%)\r(63.10/100%)\r";
        for cut in 0..printed.len() {
            let (before, after) = printed.split_at(cut);
            assert_eq!(all(&[before, after]).last(), Some(&63), "cut at {cut}");
        }
        let bytes: Vec<String> = printed.chars().map(String::from).collect();
        let bytes: Vec<&str> = bytes.iter().map(String::as_str).collect();
        assert_eq!(all(&bytes), [7, 63]);
    }

    #[test]
    fn the_last_of_a_piece_counts() {
        assert_eq!(all(&["1%\r2%\r3%\r and on"]), [3]);
    }

    #[test]
    fn rejects_what_is_no_percentage() {
        for printed in [
            "101%",
            "99999999999999999999%",
            "version 1.2.30%",
            "169/396",
            "5/10%",
            "1/2/100%",
            "1/2.100%",
            "12 of 100",
            "%",
            "/100%",
            "(./100%)",
            "12 %",
        ] {
            assert!(all(&[printed]).is_empty(), "{printed}");
        }
    }
}
