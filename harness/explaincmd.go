package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"idlerace/harness/judge"
	"idlerace/harness/record"
	"idlerace/harness/report"
	"idlerace/harness/results"
)

func explainCommand() *cobra.Command {
	var shot int64
	cmd := &cobra.Command{
		Use:   "explain RUN CELL",
		Short: "Show one request of a cell, step by step, from all its witnesses",
		Long: `Show the timeline of one request: what client, proxy and upstream say of it. By
default the first proven failure of the cell, or the first request that the
proxy had to send again, or one that went out at the dangerous moment.`,
		Example: `  idlerace explain results/latest nginx_go_p2s_u1s_POST_default_fin_rtt0s
  idlerace explain results/latest nginx_go_p2s_u1s_POST_default_fin_rtt0s --shot 131`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("idlerace explain needs a RUN (" + runArg + ") and a CELL (its id, as in the report)")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			folder, err := results.Open(args[0])
			if err != nil {
				return err
			}
			defer folder.Close()
			d, _, err := judged(folder)
			if err != nil {
				return err
			}
			v, err := verdict(d, args[1])
			if err != nil {
				return err
			}
			o, before, err := find(folder, v, shot)
			if err != nil {
				return err
			}
			return report.Explain(cmd.OutOrStdout(), v, report.NewTimeline(o, before), terminalOptions(cmd.OutOrStdout()))
		},
	}
	cmd.Flags().Int64Var(&shot, "shot", -1, "sequence number `N` of the request instead")
	cmd.ValidArgsFunction = completeCell
	return cmd
}

// completeCell completes RUN CELL.
func completeCell(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	folder, err := results.Open(args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer folder.Close()
	m, err := folder.Manifest()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, it := range m.Items {
		ids = append(ids, it.ID)
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func verdict(d *judge.Document, id string) (judge.Verdict, error) {
	var ids []string
	for _, list := range [][]judge.Verdict{d.Cells, d.Controls} {
		for _, v := range list {
			if v.ID == id {
				return v, nil
			}
			ids = append(ids, v.ID)
		}
	}
	return judge.Verdict{}, noCell(id, ids)
}

func noCell(id string, ids []string) error {
	return fmt.Errorf("the run has no cell %q; it has:\n  %s", id, strings.Join(ids, "\n  "))
}

// find looks for the request to explain, and the journal's events of its cell
// up to its end.
func find(folder *results.Folder, v judge.Verdict, shot int64) (record.Observation, []record.Event, error) {
	obs, id, err := folder.CellObservations(v.ID)
	if err != nil {
		return record.Observation{}, nil, err
	}
	defer obs.Close()
	c, err := v.Cell()
	if err != nil {
		return record.Observation{}, nil, err
	}
	wanted := func(o record.Observation) bool {
		switch {
		case shot >= 0:
			return o.Shot.Seq == uint64(shot)
		case v.Example != nil:
			return o.Shot.Seq == v.Example.Seq
		}
		return judge.InZone(o.Shot, c.RTT)
	}
	var found *record.Observation
	var last record.Observation
	var events []record.Event
	j := record.Joiner{Grace: true, Observe: func(o record.Observation) {
		if o.Shot.Cell != id {
			return
		}
		last = o
		if found == nil && wanted(o) {
			found = &o
		}
	}}
	for l, err := range record.Read(obs) {
		var bad *record.BadLine
		if err != nil && !errors.As(err, &bad) {
			return record.Observation{}, nil, err
		}
		if l.Event != nil && l.Event.Cell == id {
			events = append(events, *l.Event)
		}
		j.Add(l)
	}
	j.Flush()
	switch {
	case found != nil:
	case shot >= 0:
		return last, nil, fmt.Errorf("cell %s has no recorded request %d; its last one is %d", v.ID, shot, last.Shot.Seq)
	case last.Shot.Cell == "":
		return last, nil, fmt.Errorf("cell %s has no recorded request: %s", v.ID, v.Why)
	default:
		found = &last
	}
	return *found, lastIdle(events, found.Shot), nil
}

// lastIdle gives the last idle period that ended before a shot: how the
// connection went that the shot could have met. A shot that met one brings its
// own.
func lastIdle(events []record.Event, s record.Shot) []record.Event {
	idle := map[uint64]record.Event{}
	var out []record.Event
	for _, e := range events {
		if e.At >= s.Sent {
			break
		}
		switch {
		case e.Kind == record.EventIdle:
			idle[e.Conn] = e
		case e.Kind == record.EventClose && e.Idle > 0:
			out = []record.Event{idle[e.Conn], e}
		}
	}
	return out
}
