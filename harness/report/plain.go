package report

import (
	"strconv"
	"strings"
	"unicode"

	"github.com/charmbracelet/lipgloss"
	"github.com/charmbracelet/x/ansi"
)

// plain makes text of unknown origin fit for one line: white space of any kind
// and length becomes one blank, and see visible.
func plain(s string) string { return visible(strings.Join(strings.Fields(s), " ")) }

// visible shows every rune that does not print, such as escape, backspace or a
// change of writing direction, as its Go escape. What it returns cannot move a
// cursor, set a colour or hide text.
func visible(s string) string {
	prints := func(r rune) bool { return r == ' ' || unicode.IsPrint(r) }
	if strings.IndexFunc(s, func(r rune) bool { return !prints(r) }) < 0 {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case prints(r):
			b.WriteRune(r)
		case unicode.IsSpace(r):
			b.WriteByte(' ')
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// wrap breaks s into lines of at most width columns, at blanks where it can. It
// does not break at hyphens: names, ids and commands hold them.
func wrap(s string, width int) []string {
	var lines []string
	line, used := "", 0
	for word := range strings.FieldsSeq(s) {
		w := lipgloss.Width(word)
		if used > 0 && used+1+w <= width {
			line += " " + word
			used += 1 + w
			continue
		}
		if used > 0 {
			lines = append(lines, line)
		}
		for w > width {
			head := ansi.Truncate(word, width, "")
			if head == "" {
				break
			}
			lines = append(lines, head)
			word = word[len(head):]
			w = lipgloss.Width(word)
		}
		line, used = word, w
	}
	if used > 0 {
		lines = append(lines, line)
	}
	return lines
}

// wrapCommand breaks a shell command at blanks, each line but the last
// continued by a backslash, so that what is copied still runs.
func wrapCommand(s string, width int) []string {
	if lipgloss.Width(s) <= width {
		return []string{s}
	}
	lines := wrap(s, width-2)
	for i := range lines[:max(len(lines)-1, 0)] {
		lines[i] += ` \`
	}
	return lines
}

// cut shortens s to at most width columns.
func cut(s string, width int) string { return ansi.Truncate(s, width, "…") }
