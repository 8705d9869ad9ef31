// Package etcd founds etcd by the agreement of all founding members, without a
// person, a first among them, or a service outside.
//
// # How
//
// A machine without data gives itself a random incarnation, and that is the
// name its data directory will have. A record is one possible founding: the
// digest of the roster and the incarnation of every founding member. The first
// founding member by name proposes one; the others write it down if it names
// their own incarnation. A member founds the record that it holds
//
//   - when every founding member, asked after the member's own last write,
//     answers that it holds the same record under the incarnation named there;
//   - or when one, asked after that write, answers that it already has data
//     under this record. (One that has data under another record which names my
//     incarnation makes me write that record down, and ask again.)
//
// To found is to make the data directory beside its name and to rename it. etcd
// starts afterwards, on data that is there and whole.
//
// # Why it is safe
//
// Suppose a founded R and b founded another record S, both by the first rule.
// Each had written its record for the last time before it asked the other, and
// the start fails if anything was written since. a was told "b holds R", so at
// that moment b had not yet written S: a asked before b's last write, and a's
// own last write was before that. The same holds with the names exchanged: each
// of the two last writes is before the other. That cannot be, so there is one
// record. A member that follows the second rule only joins it.
//
// This is why an answer to a question asked before the own last write counts
// for nothing: cached answers break exactly this step.
//
// A machine that is imaged again has another incarnation. Records that name the
// old one can no longer be held by it, and so no longer be founded by the first
// rule; those that were founded before are safe for the others to join, because
// they cannot have been told "all hold it" about anything else.
//
// The record's hash is the token of the founding, and etcd derives the cluster
// ID and all member IDs from it. Another record is another cluster with other
// members, even between the same machines: what lost its data cannot come back
// under its old ID, and two foundings cannot talk to each other.
//
// A member that cannot read its disk, finds KIMAGE not mounted, or finds data
// that it does not know, does not conclude that it has no data. It stops and
// says so.
//
// Who proposes, how often, how late and how many times a proposal arrives does
// not matter for any of this. founding.pml is the same protocol as a model that
// Spin explores completely for three members.
//
// # What it does not do
//
// It neither adds nor removes members of an etcd that was founded, and replaces
// no lost majority: a person does (kimage recover). An older copy of one disk
// that is put back is outside the promise.
package etcd
