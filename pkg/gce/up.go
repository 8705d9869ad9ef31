package gce

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	compute "google.golang.org/api/compute/v1"
)

// makeTemplates uploads the configs, lets each role read its own, and makes the templates.
func (c *Cloud) makeTemplates(ctx context.Context, p *plan) error {
	if p.grants {
		c.Report.Stage("configs in gs://%s", c.Bucket)
		if err := c.ensureBucket(ctx); err != nil {
			return err
		}
		// Readers first: an instance that came up sooner would be refused.
		if err := c.setGrants(ctx, c.grants()); err != nil {
			return err
		}
		for _, o := range slices.Sorted(maps.Keys(p.objects)) {
			if err := c.put(ctx, o, p.objects[o]); err != nil {
				return err
			}
		}
	} else {
		c.Report.Stage("configs stay in the templates' metadata")
	}
	c.Report.Stage("instance templates")
	for _, t := range p.templates {
		if _, differs, err := c.ensure(ctx, t); err != nil {
			return err
		} else if differs && c.DryRun == nil {
			// Only what was cut off by hand: the digest is in the name.
			if f, there, err := c.get(ctx, templates, "", t.name); err != nil {
				return err
			} else if there && f.digest() != t.digest {
				return fmt.Errorf("instanceTemplates/%s was changed by somebody: delete it and run this again", t.name)
			}
		}
	}
	return nil
}

// Up makes all that is missing, and says of what runs whether it is as the cluster file
// has it by now.
func (c *Cloud) Up(ctx context.Context, x Cluster) (notes []string, err error) {
	p, err := c.plan(x)
	if err != nil {
		return nil, err
	}
	if err := c.makeTemplates(ctx, p); err != nil {
		return nil, err
	}
	c.Report.Stage("firewall rules and addresses")
	if err := c.makeFirewalls(ctx, p); err != nil {
		return nil, err
	}
	for _, a := range p.addresses {
		if _, differs, err := c.ensure(ctx, a); err != nil {
			return nil, err
		} else if differs && c.DryRun == nil {
			notes = append(notes, a.name+" has another address reserved than the cluster file gives it: kimage gce down "+nodeOf(p, a.name)+", then kimage gce up")
		}
	}
	c.Report.Stage("instances")
	for _, m := range p.machines {
		note, err := c.makeMachine(ctx, m)
		if err != nil {
			return notes, err
		}
		if note != "" {
			notes = append(notes, note)
		}
	}
	extra, err := c.prune(ctx, p)
	return append(notes, extra...), err
}

func nodeOf(p *plan, resource string) string {
	for _, m := range p.machines {
		if m.name == resource {
			return m.machine.Name
		}
	}
	return resource
}

// makeFirewalls makes the rules, corrects those that are no longer right, and deletes
// those that nothing needs any more.
func (c *Cloud) makeFirewalls(ctx context.Context, p *plan) error {
	wanted := map[string]bool{}
	for _, r := range p.firewalls {
		wanted[r.name] = true
		if _, differs, err := c.ensure(ctx, r); err != nil {
			return err
		} else if differs {
			if err := c.change(ctx, http.MethodPut, r, r.body); err != nil {
				return err
			}
		}
	}
	all, err := c.list(ctx, firewalls)
	if err != nil {
		return err
	}
	for _, f := range all {
		if !wanted[f.Name] {
			if err := c.remove(ctx, firewalls, "", f.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cloud) change(ctx context.Context, method string, r resource, body any) error {
	return c.operate(ctx, call{method: method, path: c.path(r.kind, r.place, r.name), body: body}, r.kind, r.place, "changing "+r.kind.name+"/"+r.name)
}

// makeMachine makes an instance or a group; what it says needs a person.
func (c *Cloud) makeMachine(ctx context.Context, m planned) (note string, err error) {
	now, differs, err := c.ensure(ctx, m.resource)
	if err != nil || now.Status == "" && now.SelfLink == "" && now.CreationTimestamp == "" { // made just now
		return "", err
	}
	if m.kind == groups {
		if !differs && strings.HasSuffix(now.InstanceTemplate, m.link) && now.TargetSize == int64(m.machine.Size) {
			return "", nil
		}
		if !strings.HasSuffix(now.InstanceTemplate, m.link) && now.TargetSize > 0 {
			note = fmt.Sprintf("instances of pool %s that run stay as they are; those made from now on follow the cluster file (gcloud compute instance-groups managed rolling-action replace %s --zone %s replaces all)", m.machine.Name, m.name, m.place)
		}
		want := m.body.(*compute.InstanceGroupManager)
		return note, c.change(ctx, http.MethodPatch, m.resource, &compute.InstanceGroupManager{Description: want.Description, InstanceTemplate: want.InstanceTemplate, TargetSize: want.TargetSize, ForceSendFields: []string{"TargetSize"}})
	}
	if differs {
		return fmt.Sprintf("%s runs as an older cluster file or image had it: kimage gce down %s, then kimage gce up boots it anew", m.machine.Name, m.machine.Name), nil
	}
	if now.Status == "TERMINATED" || now.Status == "STOPPED" {
		return "", c.operate(ctx, call{method: http.MethodPost, path: c.path(instances, m.place, m.name, "start")}, instances, m.place, "starting "+m.name)
	}
	return "", nil
}

// prune deletes configs and templates that nothing is made from any more, and names
// machines that the cluster file has no longer: those a person ends.
func (c *Cloud) prune(ctx context.Context, p *plan) (notes []string, err error) {
	keep := map[string]bool{}
	for _, list := range [][]resource{p.templates, p.addresses} {
		for _, r := range list {
			keep[r.kind.name+"/"+r.name] = true
		}
	}
	for _, m := range p.machines {
		keep[m.kind.name+"/"+m.name] = true
	}
	for _, k := range []kind{groups, instances} {
		all, err := c.list(ctx, k)
		if err != nil {
			return notes, err
		}
		for _, x := range all {
			if !keep[k.name+"/"+x.Name] && !c.pooled(x.found, p) {
				notes = append(notes, x.Name+" is no longer in the cluster file, and runs until kimage gce down "+strings.TrimPrefix(x.Name, name(c.Cluster)+"-"))
			}
		}
	}
	if len(notes) > 0 {
		return notes, nil // their templates are in use
	}
	all, err := c.list(ctx, templates)
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		if !keep[templates.name+"/"+t.Name] {
			if err := c.remove(ctx, templates, "", t.Name); err != nil {
				return nil, err
			}
		}
	}
	objects, err := c.objects(ctx)
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		if _, wanted := p.objects[o]; !wanted && !strings.HasPrefix(o, c.prefix("images", "")) {
			if err := c.removeObject(ctx, o); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// pooled says whether an instance is a group's.
func (c *Cloud) pooled(f found, p *plan) bool {
	return slices.ContainsFunc(p.machines, func(m planned) bool {
		return m.machine.Pool && f.Labels["kimage-machine"] == clean(m.machine.Name)
	})
}
