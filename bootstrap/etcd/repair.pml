/* The repair of an etcd of three members, one of which leaves the roster for a
 * fourth: every schedule of
 *
 *   - machines that lose their data (LOSSES in all), never so many at once that a
 *     majority of the members has none: that needs a person;
 *   - members that are cut off or stand still for any time;
 *   - two agents that repair, each on what it saw any time ago: the lock is held
 *     by one, and its lease may have ended while the holder slept;
 *   - a joining machine that was told any time ago that it is a member;
 *   - a second machine that answers under a member's name;
 *   - writes, acknowledged by a majority;
 *   - calm: from every state, without a further fault, the members become those
 *     of the roster.
 *
 * The rules are those of repair.go. etcd's own are its raft log's, where one change
 * of members follows the other, and of strict-reconfig-check.
 *
 * Run by founding_test.go. Each macro below breaks one rule, and must be found:
 *
 *   NOPROOF    who left the roster is removed before the others are known to serve
 *   LATE       a change is made on what was seen before the last one, and etcd
 *              does not check what would remain
 *   JOINER     a member is removed on the word of a machine of its name
 *   ANYID      a machine joins as a member that was added for another incarnation
 *   KEPT       the incarnation is kept when the data is lost
 *
 * With ALONE etcd checks nothing, and there is one repairer that does at once what
 * it decides: by its own rules that must be safe as well, and NOPROOF and JOINER
 * are judged so.
 */
#ifndef LOSSES
#define LOSSES 2
#endif
#define N 4
#define ROSTER(i) ((i) != 2 || !changed)
#define WANTED(i) ((i) != 3 -> ROSTER(i) : changed)

/* The machines. */
byte inc[N] = 1;    /* the incarnation of the disk */
bool data[N];       /* the disk has data of that incarnation */
byte member[N];     /* the ID of that data: the incarnation that it was added for */
bool up[N] = 1;     /* its etcd runs, if it has data, and is reached */
bool fresh[N];      /* the data has every acknowledged write */
byte told[N];       /* the ID of which the machine was told that it is its own; 0: none */
bool twin[N];       /* another machine answers under this name, without data */
/* etcd's members: the incarnation that each was added for; 0: none. */
byte voter[N];
byte learner[N];
byte used[N];       /* the IDs that an etcd has run as, a bit for each */
bool changed;       /* the roster has machine 3 and not machine 2 */
byte losses;
bool ended;

/* What a repairer has decided: the verb, and the ID. */
#define NONE    0
#define REMOVE  1
#define ADD     2
#define PROMOTE 3
#define DROP    4   /* a learner */
#define OTHERS  6   /* the ID of a learner for an incarnation that is gone */
byte verb[2];
byte who[2];
byte id[2];

#define HAS(i)   (voter[i] && data[i] && member[i] == voter[i])
#define LIVE(i)  (HAS(i) && up[i])
#define VOTERS   ((voter[0] > 0) + (voter[1] > 0) + (voter[2] > 0) + (voter[3] > 0))
#define ALIVE    (LIVE(0) + LIVE(1) + LIVE(2) + LIVE(3))
#define WHOLE    (HAS(0) + HAS(1) + HAS(2) + HAS(3))
#define QUORUM   (ALIVE > VOTERS / 2)
#define LEARNERS ((learner[0] > 0) + (learner[1] > 0) + (learner[2] > 0) + (learner[3] > 0))
/* The incarnation that the agents of others see. */
#define SHOWN(i) (twin[i] -> 7 : inc[i])
#define SERVES(i) (!WANTED(i) || LIVE(i))

/* S3, and no acknowledged write is lost: what a majority could elect has it. */
inline safe() {
	assert(WHOLE > VOTERS / 2);
	assert(!QUORUM || (LIVE(0) && fresh[0]) || (LIVE(1) && fresh[1]) || (LIVE(2) && fresh[2]) || (LIVE(3) && fresh[3]))
}

/* A majority acknowledges; others have it later. */
inline stale(i) { fresh[i] = LIVE(i) }
inline write() { stale(0); stale(1); stale(2); stale(3) }

/* A quorum of the others has just been proven, and etcd does not hear i. */
#define WITHOUT(i) (ALIVE - LIVE(i) > (VOTERS - 1) / 2)
#ifdef JOINER
#define DEAD(i) (voter[i] && SHOWN(i) != voter[i])
#else
#define DEAD(i) (voter[i] && !LIVE(i) && (SHOWN(i) != voter[i] || !WANTED(i)) && WITHOUT(i))
#endif
#ifdef NOPROOF
#define LEFT(i) (voter[i] && !WANTED(i))
#else
#define LEFT(i) (voter[i] && !WANTED(i) && SERVES(0) && SERVES(1) && SERVES(2) && SERVES(3))
#endif
#define JOINS(i) (WANTED(i) && !voter[i] && !learner[i] && !data[i] && !twin[i] && LEARNERS == 0)
#define RUNS_AS_LEARNER(i) (learner[i] && data[i] && member[i] == learner[i] && up[i])

/* Repairer r sees that something is to be done for machine i. */
inline see(r, i) {
	if
	:: DEAD(i) || LEFT(i) -> verb[r] = REMOVE; who[r] = i; id[r] = voter[i]
	:: else ->
		if
		:: learner[i] && (SHOWN(i) != learner[i] || !WANTED(i)) && !RUNS_AS_LEARNER(i) -> verb[r] = DROP; who[r] = i; id[r] = learner[i]
		:: else ->
			if
			:: RUNS_AS_LEARNER(i) && fresh[i] -> verb[r] = PROMOTE; who[r] = i; id[r] = learner[i]
			:: else ->
				if
				:: JOINS(i) -> verb[r] = ADD; who[r] = i; id[r] = inc[i]
				:: else
				fi
			fi
		fi
	fi
}

#if defined(LATE) || defined(ALONE)
#define STRICT(i) (true)
#else
#define STRICT(i) (ALIVE - LIVE(i) > (VOTERS - 1) / 2)
#endif

/* What a quorum commits it has, and all that was written before it. */
inline commit() {
	fresh[0] = fresh[0] || LIVE(0); fresh[1] = fresh[1] || LIVE(1); fresh[2] = fresh[2] || LIVE(2); fresh[3] = fresh[3] || LIVE(3)
}

/* It is done if a quorum commits it and it is still there to be done. A learner
 * that is added late has an ID of its own, too, and is for a machine that is no
 * more. */
inline act(r) {
	if
	:: verb[r] == REMOVE && voter[who[r]] == id[r] && STRICT(who[r]) -> commit(); voter[who[r]] = 0; safe()
	:: verb[r] == DROP && learner[who[r]] == id[r] -> learner[who[r]] = 0
	:: verb[r] == ADD && !voter[who[r]] && LEARNERS == 0 -> learner[who[r]] = (id[r] == inc[who[r]] -> id[r] : OTHERS)
	:: verb[r] == PROMOTE && learner[who[r]] == id[r] && RUNS_AS_LEARNER(who[r]) && fresh[who[r]] ->
		commit(); voter[who[r]] = id[r]; learner[who[r]] = 0; safe()
	:: else
	fi;
	forget(r)
}
inline forget(r) { verb[r] = NONE; who[r] = 0; id[r] = 0 }

#ifdef ANYID
#define MINE(i) (learner[i] != 0)
#else
#define MINE(i) (learner[i] && learner[i] == inc[i])
#endif

/* A machine without data starts etcd, which finds the ID by its address among
 * the members that there are. If it is not the one that was told, what etcd made
 * is set aside. */
inline join(i) {
	if
	:: learner[i] && learner[i] != told[i] -> inc[i]++; told[i] = 0
	:: learner[i] && learner[i] == told[i] ->
		told[i] = 0;
		assert((used[i] & (1 << learner[i])) == 0); /* S2 */
		data[i] = true; fresh[i] = false; member[i] = learner[i];
		used[i] = used[i] | (1 << learner[i])
	:: else -> told[i] = 0 /* etcd ends: it is no member */
	fi
}

inline lose(i) {
	data[i] = false; fresh[i] = false; member[i] = 0; told[i] = 0;
#ifndef KEPT
	inc[i]++
#endif
}
/* A majority keeps its data. */
#define MAY_LOSE(i) (losses < LOSSES && data[i] && WHOLE - HAS(i) > VOTERS / 2)

inline settle(r, i) {
	see(r, i);
	if
	:: verb[r] -> act(r)
	:: else
	fi;
	if
	:: !data[i] && MINE(i) -> told[i] = learner[i]; join(i)
	:: else
	fi;
	if
	:: learner[i] && data[i] && member[i] == learner[i] -> fresh[i] = true
	:: else
	fi;
	/* Removed: it says so, and the data is set aside. */
	if
	:: data[i] && member[i] != voter[i] && member[i] != learner[i] -> lose(i)
	:: else
	fi
}

byte look;

inline calm() {
	forget(0); forget(1);
	up[0] = true; up[1] = true; up[2] = true; up[3] = true;
	twin[0] = false; twin[1] = false; twin[2] = false; twin[3] = false;
	told[0] = 0; told[1] = 0; told[2] = 0; told[3] = 0;
	do
	:: look < 8 * N -> settle(0, look % N); look++
	:: else -> break
	od;
	look = 0;
	/* L2 to L4 */
	assert((LIVE(0) > 0) == WANTED(0) && (LIVE(1) > 0) == WANTED(1) && (LIVE(2) > 0) == WANTED(2) && (LIVE(3) > 0) == WANTED(3));
	assert(VOTERS == 3 && LEARNERS == 0);
	ended = true;
	clear(0); clear(1); clear(2); clear(3);
	losses = 0; changed = false
}
inline clear(i) {
	inc[i] = 0; data[i] = false; member[i] = 0; fresh[i] = false; voter[i] = 0; learner[i] = 0; used[i] = 0; up[i] = false
}

#ifdef ALONE
#define REPAIRS(i) :: atomic { !ended && QUORUM -> d_step { see(0, i); act(0) } }
#else
#define REPAIRS(i) \
	:: atomic { !ended && QUORUM && verb[0] == NONE -> d_step { see(0, i) } } \
	:: atomic { !ended && QUORUM && verb[1] == NONE -> d_step { see(1, i) } }
#endif

#define EVENTS(i) \
	:: atomic { !ended && MAY_LOSE(i) -> d_step { lose(i); losses++ } } \
	:: atomic { !ended -> up[i] = !up[i] } \
	:: atomic { !ended && i == 1 && !twin[i] && losses < LOSSES -> d_step { twin[i] = true; losses++ } } \
	REPAIRS(i) \
	:: atomic { !ended && !data[i] && MINE(i) && told[i] != learner[i] -> told[i] = learner[i] } \
	:: atomic { !ended && !data[i] && told[i] -> d_step { join(i) } } \
	:: atomic { !ended && QUORUM && RUNS_AS_LEARNER(i) && !fresh[i] -> fresh[i] = true } \
	:: atomic { !ended && data[i] && up[i] && QUORUM && member[i] != voter[i] && member[i] != learner[i] -> d_step { lose(i) } }

active proctype world() {
	d_step {
		data[0] = true; data[1] = true; data[2] = true; member[0] = 1; member[1] = 1; member[2] = 1;
		voter[0] = 1; voter[1] = 1; voter[2] = 1; fresh[0] = true; fresh[1] = true; fresh[2] = true;
		used[0] = 2; used[1] = 2; used[2] = 2
	}
	do
	EVENTS(0)
	EVENTS(1)
	EVENTS(2)
	EVENTS(3)
	:: atomic { !ended && !changed -> changed = true }
	:: atomic { !ended && QUORUM -> d_step { write() } }
	:: atomic { !ended && QUORUM && verb[0] -> d_step { act(0) } }
	:: atomic { !ended && QUORUM && verb[1] -> d_step { act(1) } }
	:: d_step { !ended -> calm() }
	:: ended -> break
	od
}
