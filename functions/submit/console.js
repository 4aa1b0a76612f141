// The console: callers who are signed in see their tasks and where the callbacks of these are; they submit, cancel, redeliver
// and try out receivers. Here it starts, and each address gets its view.

start({
  signIn: showSignIn,
  nothing: showNothing,
  named: {
    __proto__: null, // else `#/constructor` would be a view
    tasks: (parameters, id) => (id ? showTask(id) : showTasks(parameters)),
    submit: showSubmit,
    callbacks: showCallbacks,
  },
});
setInterval(refreshNear, 1000);
