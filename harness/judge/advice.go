package judge

import "idlerace/harness/spec"

// Advice is what a document's cells support for one proxy: what to set, what
// was seen to help, and what the run cannot say.
type Advice struct {
	Proxy     string     `json:"proxy"`
	Version   string     `json:"version"`
	Runtime   string     `json:"runtime"`
	Sentences []Sentence `json:"sentences"`
}

// Sentence is one statement and the cells that it rests on: at least one, each
// in the state that the sentence says of it.
type Sentence struct {
	Kind   AdviceKind `json:"kind"`
	Rank   int        `json:"rank"`   // of a mitigation, 1 is the best; 0 of all else
	Effect Effect     `json:"effect"` // of a mitigation; empty of all else
	Text   string     `json:"text"`   // one or two sentences
	Brief  string     `json:"brief"`  // the same in a few words
	Cells  []Support  `json:"cells"`
}

// Support is a cell or control that a sentence names.
type Support struct {
	ID    string     `json:"id"`
	State spec.State `json:"state"`
}

// AdviceKind says what a sentence is about.
type AdviceKind string

const (
	AdviceNone          AdviceKind = "none"          // why there is no advice, or none on the timeouts
	AdviceSet           AdviceKind = "set"           // the timeouts to set
	AdviceWhy           AdviceKind = "why"           // what happened with other timeouts
	AdviceMargin        AdviceKind = "margin"        // how near the limit the safe pairs are, as far as the run tells
	AdviceContradiction AdviceKind = "contradiction" // cells that do not agree on a rule
	AdviceMethods       AdviceKind = "methods"       // the racing pairs by request method
	AdviceMitigation    AdviceKind = "mitigation"    // another setting on the racing pairs, ranked
	AdviceGap           AdviceKind = "gap"           // what was not measured or not decided, and so cannot be advised
)

// Effect is what a mitigation did to the cells it was tried on, by the worst of
// them.
type Effect string

const (
	EffectCures     Effect = "cures"     // every cell is safe
	EffectHides     Effect = "hides"     // no request is lost, and none was executed twice
	EffectRepeats   Effect = "repeats"   // no request is lost, but some were executed twice
	EffectHelps     Effect = "helps"     // some cells are better and none is worse, but requests are lost
	EffectUnchanged Effect = "unchanged" // no cell is better or worse
	EffectWorsens   Effect = "worsens"   // some cells are worse
)

// Effects lists the values of Effect, best first.
func Effects() []Effect {
	return []Effect{EffectCures, EffectHides, EffectRepeats, EffectHelps, EffectUnchanged, EffectWorsens}
}
