// Package etcd founds etcd by the agreement of all founding members, without a
// person, a first among them, or a service outside, and repairs it afterwards.
//
// # How it is founded
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
// # How it is repaired
//
// A voter's agent compares what etcd says of its members (a View, read from a
// quorum) with the roster and with what the other agents answer, and makes one
// change at a time (nextStep):
//
//   - A member whose machine shows another incarnation has lost its data, and one
//     that left the roster and is down will not come back: it is removed.
//   - A machine of the roster that has no member and no data is added as a
//     learner, and promoted when it has all data.
//   - A member that left the roster and lives is removed last, when all of the
//     roster are voters that serve.
//
// A register in etcd says of each member ID to which incarnation it belongs. An
// entry is made once and never changed. A machine starts etcd without data only
// for a member that is registered for its own incarnation, and only once: what
// such a start leaves, if it ends before the data is whole, is set aside, and the
// machine comes back as another incarnation.
//
// # Why that is safe
//
// A member ID has one incarnation, by the register, and an incarnation's data
// directory is made once. So no member comes back without what it acknowledged
// under the ID under which it did. etcd finds its own ID by its address among the
// members that it is told of; that is the registered one, because there is no
// other with that address: it was removed before this one was added.
//
// A change is made under a lock, after all others were asked again and have each
// read from a quorum, so it is known that what remains is one. The lock's lease
// may end while its holder sleeps. Then there are two that repair, and etcd
// itself, by strict-reconfig-check, refuses what would end without a quorum; and
// a change that is late names an ID, which nothing else ever has.
//
// A member that etcd hears is not removed on an agent's word: two machines have
// one name, and a person must switch one off. Whoever joins asks for nothing: it
// is the voters who look.
//
// Data that etcd cannot read counts as lost only by words of etcd's own
// (unusable), and when another has read from a quorum meanwhile. It is set aside,
// never deleted. An agent counts its starts, and every ten minutes, and gives each
// count a random tag. A machine of which others have heard a count that is not on
// its disk has an older copy of it, and sets its data aside as well. What was put
// back within ten minutes and without a start between is not noticed.
//
// # What it does not do
//
// It replaces no lost majority: a person does (kimage recover). Without a quorum
// it changes nothing.
//
// Founding asks the machines of the newest roster and those that left it. If the
// only ones with data have left and are off, founding members that are blank wait
// for them; only a person can say that they are gone for good (kimage recover).
package etcd
